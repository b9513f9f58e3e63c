"""What the weights alone say of features: logits, tokens they read, heads, and the features below and above."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.attribution import VirtualWeights, deembed, virtual_weights
from pullback.attribution.weights.wiring import Wiring
from pullback.interpret.features.logits import top_logits
from pullback.lens import Lens
from pullback.transcoders import LayeredDictionary


@torch.no_grad()
def weight_parts(lens: Lens, sets: LayeredDictionary, layer: int, ids: Tensor, k: int) -> list[dict[str, Any]]:
    """Of each feature: `top_logits`, `bottom_logits`; and of a transcoder's, since those of an autoencoder read no
    stream, `deembedding` and `bottom_deembedding`, `heads`, `pullbacks` from below and `feeds` above."""
    words = lens.to_str_tokens(torch.arange(lens.d_vocab))

    def rows(found: tuple[Tensor, Tensor]) -> list[list[list[Any]]]:
        return [
            [[words[i], value] for value, i in zip(v, at, strict=True)]
            for v, at in zip(found[0].tolist(), found[1].tolist(), strict=True)
        ]

    parts: dict[str, list[Any]] = {
        name: rows(found) for name, found in top_logits(lens, sets, layer, k, ids.to(lens.device)).items()
    }
    if sets.hook_in(layer) != sets.hook_out(layer):
        wiring = Wiring(lens, sets, strict=False)
        read = deembed(lens, sets, layer, ids, k=k, strict=False)
        parts["deembedding"] = rows((read.top, read.top_ids))
        parts["bottom_deembedding"] = rows((read.bottom, read.bottom_ids))
        parts["heads"] = _heads(wiring, layer, wiring.reads(layer, ids.to(lens.device)))
        parts["pullbacks"] = _others(lens, sets, layer, ids, "into", k)
        parts["feeds"] = _others(lens, sets, layer, ids, "out of", k)
    return [{name: values[row] for name, values in parts.items()} for row in range(len(ids))]


def _heads(wiring: Wiring, layer: int, reads: Tensor) -> list[list[dict[str, Any]]]:
    """||OV^T f_enc|| of every head below, by layer and head."""
    between = wiring.heads_between(-1, layer)
    norms = torch.stack([wiring.back_through(head, reads).norm(dim=1) for head in between], 1).tolist()
    return [
        [{"layer": at, "head": head, "norm": norm} for (at, head), norm in zip(between, row, strict=True)]
        for row in norms
    ]


def _others(
    lens: Lens, sets: LayeredDictionary, layer: int, ids: Tensor, direction: str, k: int
) -> list[list[dict[str, Any]]]:
    if not any(other < layer if direction == "into" else other > layer for other in sets.layers):
        return [[] for _ in ids]
    found: VirtualWeights = virtual_weights(lens, sets, layer, ids, direction=direction, k=k, strict=False)
    columns = (found.layers.tolist(), found.ids.tolist(), found.weights.tolist())
    return [
        [
            {"layer": at, "feature": other, "weight": weight}
            for at, other, weight in zip(*of_one, strict=True)
            if other >= 0
        ]
        for of_one in zip(*columns, strict=True)
    ]
