"""What a corpus shows of a few features of one layer: where they are active, how strongly, and what else is then."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.interpret.features.layer import LayerActivity
from pullback.interpret.features.levels import Levels
from pullback.interpret.features.reading import Batches, activations, read_corpus, shown
from pullback.interpret.features.records import Corpus, feature_record, shown_examples
from pullback.lens import Lens
from pullback.ops import Coactivation, SparseActivations
from pullback.transcoders import LayeredDictionary
from pullback.viz.packs import as_card

UNIFORM, QUANTILE = "uniform", "quantile"
BANDS = (UNIFORM, QUANTILE)


class Examples(NamedTuple):
    """Which examples are kept of a feature."""

    n_top: int
    bands: str
    """"uniform": bands of equal width up to the largest activation. "quantile": of equally many contexts."""
    n_bands: int
    n_per_band: int
    window: tuple[int, int]


class Seen:
    """Statistics of n features, in memory that does not grow with the corpus: n * F * 16 bytes and the examples.

    Args:
        features: their ids in the layer, (n), ascending, of `n_features`.
    """

    def __init__(self, features: Tensor, n_features: int, wanted: Examples, seed: int) -> None:
        self.features = features.cpu()
        self.wanted = wanted
        n_sampled = wanted.n_bands * wanted.n_per_band if wanted.bands == QUANTILE else 1
        n_per_level = wanted.n_per_band if wanted.bands == UNIFORM else 0
        self.activity = LayerActivity(len(features), wanted.n_top, n_sampled, wanted.window, n_per_level)
        self.together = Coactivation(n_features, rows=self.features)
        self._place = torch.full((n_features,), -1).index_copy(0, self.features, torch.arange(len(features)))
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, acts: SparseActivations, counts: Tensor, first: int) -> None:
        """One batch, as `LayerActivity.add` takes it."""
        acts = acts.to("cpu")
        place = self._place[acts.indices.long()]
        own = acts.where(place >= 0)
        own = SparseActivations(own.indptr, place[place >= 0].int(), own.values, len(self.features))
        self.activity.add(own, counts, first, self._generator)
        counted = acts.where(counts.flatten().cpu()[acts.rows()] & (acts.values != 0))
        ones = torch.ones_like(counted.values, dtype=torch.float32)
        self.together.add(SparseActivations(counted.indptr, counted.indices, ones, acts.n_features))

    def card(self, row: int, corpus: Corpus, n_neighbours: int) -> dict[str, Any]:
        """Of the feature in a row: a card with examples, and `neighbours`, `beside`."""
        card = as_card(feature_record(self.activity, row, corpus, self.wanted.n_bands))
        if self.activity.levels is not None:
            card["sampled"] = self._bands(self.activity.levels, row, corpus)
        return card | self._company(row, corpus.n_tokens, n_neighbours)

    def _bands(self, levels: Levels, row: int, corpus: Corpus) -> list[dict[str, Any]]:
        """The strongest band first."""
        n, largest = self.wanted.n_bands, float(self.activity.largest[row])
        if not largest > 0:
            return []
        edges = [largest * i / n for i in range(n)] + [largest]
        bands = []
        for low, high in reversed(list(zip(edges, edges[1:], strict=False))):
            records = shown_examples(levels.band(row, low, high), self.wanted.window, corpus)
            examples = as_card({"examples_quantiles": [{"examples": records}]})["examples"]
            bands.append({"name": f"{low:.3g} to {high:.3g}", "examples": examples})
        return bands

    def _company(self, row: int, n_tokens: int, k: int) -> dict[str, Any]:
        """`neighbours`: other features of the layer that are active on the same tokens, by phi, the correlation of
        being active; `beside`: how many others are, on the average token of this one."""
        both, alone = self.together.block()[0][row], self.together.sums_b
        own = alone[self.features[row]]
        if own == 0:
            return {"neighbours": [], "beside": None}
        spread = own * (n_tokens - own) * alone * (n_tokens - alone)
        phi = (both * n_tokens - own * alone) / spread.clamp(min=1).sqrt()
        phi[(spread == 0) | (both == 0)] = -torch.inf
        phi[self.features[row]] = -torch.inf
        values, ids = phi.topk(min(k, len(phi)))
        neighbours = [
            {
                "feature": j,
                "phi": round(value, 6),
                "share": float(both[j] / own),
                "density": float(alone[j] / n_tokens),
            }
            for value, j in zip(values.tolist(), ids.tolist(), strict=True)
            if value > -torch.inf
        ]
        return {"neighbours": neighbours, "beside": float((both.sum() - own) / own)}


@torch.no_grad()
def seen_in(
    lens: Lens,
    sets: LayeredDictionary,
    layer: int,
    features: Tensor,
    corpus: Batches,
    wanted: Examples,
    *,
    n_neighbours: int,
    seed: int,
    verbose: bool = False,
) -> tuple[int, list[dict[str, Any]]]:
    """Read a corpus for features of a layer, in any order: how many tokens counted, and a card of each feature."""
    ascending = torch.sort(features).values
    seen = Seen(ascending, sets[layer].d_sae, wanted, seed)
    stream = activations(lens, sets, [layer], shown(iter(corpus.batches), "contexts", verbose), corpus.excluded)
    read = read_corpus(lens, stream, lambda _, *batch: seen.add(*batch), seen.activity.referred)
    rows = torch.searchsorted(ascending, features).tolist()
    return read.n_tokens, [seen.card(row, read, n_neighbours) for row in rows]
