"""What the residual stream is made of at one position, before one layer: every part that a graph has a node for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.attribution.attention import flow
from pullback.attribution.local import LocalModel
from pullback.lens import LayerTrace

COMPONENT_KINDS = (
    *("embedding", "position", "feature", "error", "head", "bias", "skip", "own"),
    *("attention_feature", "attention_error"),
)


@dataclass(frozen=True)
class Components:
    """n parts of the stream, by node ids. Heads are `{layer}_head_{head}_{pos}`, skip paths `{layer}_skip_{pos}`."""

    names: list[str]
    kinds: list[str]
    vectors: Tensor  # (n, d)


def components(local: LocalModel, layer: int, pos: int) -> Components:
    """The parts of the stream that attention of `layer` reads at `pos`. They sum to it exactly.

    A feature is one part, whatever number of layers it writes to; a head is what it brings from all positions, without
    biases, which are the attention bias as in a graph.
    """
    t = local.trace
    parts: list[tuple[str, str, Tensor]] = [("embedding", f"E_{int(t.tokens[pos])}_{pos}", t.embed[pos])]
    if t.pos_embed is not None:
        parts.append(("position", f"P_{pos}", t.pos_embed[pos]))
    for k in range(layer):
        parts += _of_layer(local, k, pos)
    kinds, names, vectors = zip(*parts, strict=True)
    features = [_features(local, source, layer, pos) for source in sorted(local.acts) if source < layer]
    return Components(
        names=[*names, *(name for found, _ in features for name in found)],
        kinds=[*kinds, *("feature" for found, _ in features for _ in found)],
        vectors=torch.cat([torch.stack(vectors), *(rows for _, rows in features)]),
    )


def _of_layer(local: LocalModel, k: int, pos: int) -> list[tuple[str, str, Tensor]]:
    """What layer k writes at pos, apart from features."""
    layer = local.trace.layers[k]
    parts = _of_attention(local, k, pos) if k in local.attention.acts else _of_heads(layer, k, pos)
    parts.append(("bias", f"{k}_bias_attn_{pos}", local.attn_bias[k][pos]))
    parts.append(("error", f"{k}_-1_{pos}", local.errors[k][pos]))
    if k in local.mlp_bias:
        parts.append(("bias", f"{k}_bias_mlp_{pos}", local.mlp_bias[k][pos]))
    W_skip = local.sets.skip(k) if k in local.sets else None
    if W_skip is not None:
        at = torch.tensor([pos], device=layer.x_pre.device)
        read = layer.read_linear(local.sets.hook_in(k), layer.mlp_stream[at], at)
        parts.append(("skip", f"{k}_skip_{pos}", (read @ W_skip.T)[0]))
    return parts


def _of_heads(layer: LayerTrace, k: int, pos: int) -> list[tuple[str, str, Tensor]]:
    written = torch.einsum("hte,hed->hd", flow.brought(layer, pos), layer.weights.W_O)
    return [("head", f"{k}_head_{h}_{pos}", write) for h, write in enumerate(written)]


def _of_attention(local: LocalModel, k: int, pos: int) -> list[tuple[str, str, Tensor]]:
    """The features and the error that stand in for what heads bring."""
    found = local.attention
    ids, z = found.acts[k].row(pos)
    rows = z[:, None] * found.sets.decoder_rows(k, ids, k)
    named = zip(ids.tolist(), rows, strict=True)
    parts = [("attention_feature", f"A{k}_{feature}_{pos}", row) for feature, row in named]
    return [*parts, ("attention_error", f"A{k}_-1_{pos}", found.errors[k][pos])]


def _features(local: LocalModel, source: int, layer: int, pos: int) -> tuple[list[str], Tensor]:
    """Names and (n, d) writes of the features of one layer, summed over the layers below `layer` that they write to."""
    ids, z = local.acts[source].row(pos)
    written = sum(
        (local.sets.decoder_rows(source, ids, to) for to in local.sets.targets(source) if to < layer),
        start=local.trace.embed.new_zeros(len(ids), local.trace.embed.shape[1]),
    )
    return [f"{source}_{feature}_{pos}" for feature in ids.tolist()], z[:, None] * written
