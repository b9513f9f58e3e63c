"""Node names, shared by tables, files and pages (FORMATS.md a)."""

from __future__ import annotations

from pullback.attribution.nodes import BIAS, BIAS_KINDS, DIRECTION, EMBEDDING, ERROR, LOGIT, OWN, POSITION, Nodes


def node_ids(n: Nodes) -> list[str]:
    """`{l}_{feature}_{pos}`, `{l}_-1_{pos}`, `E_{vocab}_{pos}`, `P_{pos}`, `{l}_bias_{kind}_{pos}`, `own_{target}`,
    `{n_layers + 1}_{vocab}_{pos}`, `D_{number}_{pos}`."""
    columns = zip(n.kind.tolist(), n.layer.tolist(), n.pos.tolist(), n.feature.tolist(), strict=True)
    names: list[str] = []
    own: list[tuple[int, int]] = []
    for kind, layer, pos, feature in columns:
        if kind == EMBEDDING:
            names.append(f"E_{feature}_{pos}")
        elif kind == POSITION:
            names.append(f"P_{pos}")
        elif kind == ERROR:
            names.append(f"{layer}_-1_{pos}")
        elif kind == BIAS:
            names.append(f"{layer}_bias_{BIAS_KINDS[feature]}_{pos}")
        elif kind == LOGIT:
            names.append(f"{layer + 1}_{feature}_{pos}")
        elif kind == DIRECTION:
            names.append(f"D_{feature}_{pos}")
        elif kind == OWN:
            own.append((len(names), feature))
            names.append("")
        else:
            names.append(f"{layer}_{feature}_{pos}")
    for place, target in own:
        names[place] = f"own_{names[target]}"
    return names
