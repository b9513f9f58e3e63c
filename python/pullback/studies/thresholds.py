"""What a feature reads of the first year against what it says of the second (METHODS 1.11): where the two cross is the
threshold that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.attribution import deembed, logit_effects, pullback
from pullback.lens import Lens, Trace, traces
from pullback.studies.behaviours import Years
from pullback.transcoders import LayeredDictionary

BEST = 10


@dataclass(frozen=True)
class Threshold:
    """Of one feature, over the year tokens (Y): `deembedding`, what the token of a first year gives it through a head
    (layer, head); `dla`, what it adds to the logit of a second year."""

    feature: int
    head: tuple[int, int]
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
    recorded = traces(lens, years.tokens)
    at = year_position(years)
    return [_threshold(lens, sets, years, recorded, layer, feature, at) for feature in features]


def year_position(years: Years) -> int:
    """The one position where prompts differ."""
    return int((years.tokens != years.tokens[:1]).any(0).nonzero()[0, 0])


def _threshold(
    lens: Lens, sets: LayeredDictionary, years: Years, recorded: list[Trace], layer: int, feature: int, at: int
) -> Threshold:
    head = _head(lens, sets, recorded, layer, feature, at)
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


def _head(
    lens: Lens, sets: LayeredDictionary, recorded: list[Trace], layer: int, feature: int, at: int
) -> tuple[int, int]:
    fitted = lens.fitted(sets)
    row = fitted.encoder_rows(layer, [feature])
    last = torch.tensor([recorded[0].n_pos - 1], device=row.device)
    reads = [t.layers[layer].read_pullback(fitted.hook_in(layer), row, last)[0] for t in recorded]
    spread = torch.stack(
        [
            torch.stack([_given(t, k, read, at) for t, read in zip(recorded, reads, strict=True)]).std(0)
            for k in range(layer + 1)
        ]
    )
    best = int(spread.argmax())
    return best // spread.shape[1], best % spread.shape[1]


def _given(t: Trace, k: int, read: Tensor, at: int) -> Tensor:
    """What each head of layer k brings from one position to what is read at the last: (n_heads)."""
    layer = t.layers[k]
    w = layer.weights
    v = w.values(w.ln1.linear(layer.x_pre[at : at + 1]) / layer.ln1_scale[at : at + 1], bias=False)
    v = v.repeat_interleave(w.W_O.shape[0] // v.shape[0], dim=0)[:, 0]
    return layer.mixing[:, -1, at] * torch.einsum("he,hed,d->h", v, w.W_O, read)
