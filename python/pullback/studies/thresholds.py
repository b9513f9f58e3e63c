"""What a feature reads of the first year against what it says of the second (METHODS 1.11): where the two cross is the
threshold that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.attribution import deembed, logit_effects, pullback
from pullback.attribution.attention import flow
from pullback.attribution.weights.wiring import Head
from pullback.lens import LayerTrace, Lens, Trace, traces
from pullback.studies.behaviours import Years
from pullback.transcoders import LayeredDictionary

BEST = 10


@dataclass(frozen=True)
class Threshold:
    """Of one feature, over the year tokens (Y): `deembedding`, what the token of a first year gives it through a head
    (layer, head); `dla`, what it adds to the logit of a second year."""

    feature: int
    head: Head
    deembedding: list[float]
    dla: list[float]

    def overlap(self) -> float:
        """Correlation of the two; below 0 where the feature reads other years than it says."""
        pair = torch.stack([torch.tensor(self.deembedding), torch.tensor(self.dla)])
        return float(torch.corrcoef(pair)[0, 1])


@torch.no_grad()
def thresholds(lens: Lens, sets: LayeredDictionary, years: Years, layer: int, features: list[int]) -> list[Threshold]:
    """De-embedding against direct logit attribution of features of a layer.

    The head is the one up to the layer whose reading of the first year's position, in what it gives the feature,
    varies most over the prompts. Behind layer 0, a year is read there through the ten features of layer 0 that weigh
    most on the head, as their de-embeddings; in layer 0, and where its transcoder is missing, as its embedding.
    """
    heads = _heads(lens, sets, traces(lens, years.tokens), layer, features, year_position(years))
    return [_threshold(lens, sets, years, layer, *one) for one in zip(features, heads, strict=True)]


def year_position(years: Years) -> int:
    """The one position where prompts differ."""
    return int((years.tokens != years.tokens[:1]).any(0).nonzero()[0, 0])


def _threshold(lens: Lens, sets: LayeredDictionary, years: Years, layer: int, feature: int, head: Head) -> Threshold:
    ids = years.ids.tolist()
    if head[0] > 0 and 0 in sets:
        weights = pullback(lens, sets, (layer, [feature]), 0, heads=[head], k=BEST)
        best = weights.values[0]
        assert weights.ids is not None
        read = best @ deembed(lens, sets, 0, weights.ids[0], full=True).on(ids).to(best)
    else:
        read = deembed(lens, sets, layer, [feature], heads=[head], full=True).on(ids)[0]
    said = logit_effects(lens, sets, layer, [feature], full=True).on(ids)[0]
    return Threshold(feature, head, read.tolist(), said.tolist())


def _heads(
    lens: Lens, sets: LayeredDictionary, recorded: list[Trace], layer: int, features: list[int], at: int
) -> list[Head]:
    """For each feature the head that brings it what varies most from a position `at` to the last."""
    fitted = lens.fitted(sets)
    rows = fitted.encoder_rows(layer, features)
    last = torch.full((len(features),), recorded[0].n_pos - 1, device=rows.device)
    reads = [t.layers[layer].read_pullback(fitted.hook_in(layer), rows, last) for t in recorded]
    spread = [
        torch.stack([_given(t.layers[k], read, at) for t, read in zip(recorded, reads, strict=True)]).std(0)
        for k in range(layer + 1)
    ]
    return [divmod(best, lens.n_heads) for best in torch.cat(spread, 1).argmax(1).tolist()]


def _given(layer: LayerTrace, reads: Tensor, at: int) -> Tensor:
    """What each head brings from one position to vectors (r, d) that read the last, (r, n_heads)."""
    return torch.einsum("he,hed,rd->rh", flow.brought(layer, -1)[:, at], layer.weights.W_O, reads)
