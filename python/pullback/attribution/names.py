"""Node names, shared by tables, files and pages (FORMATS.md a)."""

from __future__ import annotations

from pullback.attribution.nodes import (
    ATTENTION_ERROR,
    ATTENTION_FEATURE,
    BIAS,
    BIAS_KINDS,
    DIRECTION,
    EMBEDDING,
    ERROR,
    LOGIT,
    OWN,
    POSITION,
    Nodes,
)


def node_ids(n: Nodes) -> list[str]:
    """`node_id` of every node, and `own_{target}` of own leaves."""
    columns = zip(n.kind.tolist(), n.layer.tolist(), n.pos.tolist(), n.feature.tolist(), strict=True)
    names = ["" if kind == OWN else node_id(kind, layer, pos, feature) for kind, layer, pos, feature in columns]
    for place in (n.kind == OWN).nonzero()[:, 0].tolist():
        names[place] = f"own_{names[int(n.feature[place])]}"
    return names


def node_id(kind: int, layer: int, pos: int, feature: int) -> str:
    """`{l}_{feature}_{pos}`, `{l}_-1_{pos}`, of attention outputs with an A in front, `E_{vocab}_{pos}`, `P_{pos}`,
    `{l}_bias_{kind}_{pos}`, `{n_layers + 1}_{vocab}_{pos}`, `D_{number}_{pos}`."""
    if kind == EMBEDDING:
        return f"E_{feature}_{pos}"
    if kind == POSITION:
        return f"P_{pos}"
    if kind == ERROR:
        return f"{layer}_-1_{pos}"
    if kind in (ATTENTION_FEATURE, ATTENTION_ERROR):
        return f"A{layer}_{feature}_{pos}"
    if kind == BIAS:
        return f"{layer}_bias_{BIAS_KINDS[feature]}_{pos}"
    if kind == LOGIT:
        return f"{layer + 1}_{feature}_{pos}"
    if kind == DIRECTION:
        return f"D_{feature}_{pos}"
    return f"{layer}_{feature}_{pos}"
