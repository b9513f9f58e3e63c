"""Which features of a layer are alive, and a few of them by lot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.interpret.features.pack import FeaturePack
from pullback.interpret.features.reading import Batches, activations
from pullback.lens import Lens, as_lens
from pullback.training.source import Tokens
from pullback.transcoders import LayeredDictionary


def live_features(
    model: Any,
    sets: LayeredDictionary,
    layer: int,
    tokens: Tokens | FeaturePack,
    *,
    min_density: float = 1e-4,
    mask: Tensor | None = None,
    context_size: int | None = None,
    batch_size: int = 32,
    strict: bool = True,
) -> Tensor:
    """Ids (n), ascending, of the features of a layer that are active on more than the share `min_density` of tokens:
    of a corpus, or of that of a feature pack."""
    if isinstance(tokens, FeaturePack):
        return pack_live(tokens, layer, min_density)
    lens = as_lens(model)
    corpus = Batches.of(lens, tokens, mask=mask, context_size=context_size, batch_size=batch_size)
    return corpus_live(lens, lens.fitted(sets, strict=strict), layer, corpus, min_density)


@torch.no_grad()
def corpus_live(lens: Lens, sets: LayeredDictionary, layer: int, corpus: Batches, min_density: float) -> Tensor:
    """The same of a corpus, for a set that fits the model. Raises ValueError if no token counts."""
    active, n_tokens = torch.zeros(sets[layer].d_sae, dtype=torch.int64), 0
    for read in activations(lens, sets, [layer], *corpus):
        acts, counts = read.acts[layer], read.counts.flatten()
        counted = acts.where(counts.to(acts.device)[acts.rows()] & (acts.values != 0))
        active += torch.bincount(counted.indices.long().cpu(), minlength=len(active))
        n_tokens += int(counts.sum())
    if n_tokens == 0:
        raise ValueError("live features: no token counts; the mask is false everywhere, or all are special")
    return (active > min_density * n_tokens).nonzero()[:, 0]


def pack_live(pack: FeaturePack, layer: int, min_density: float) -> Tensor:
    densities = [float(pack.record(layer, f).get("activation_frequency") or 0.0) for f in range(pack.n_features(layer))]
    return (torch.tensor(densities, dtype=torch.float64) > min_density).nonzero()[:, 0]


def drawn(live: Tensor, n: int, seed: int) -> list[int]:
    """n of them by lot, in the order of the lot. Raises ValueError where there are fewer."""
    if n < 1 or len(live) < n:
        raise ValueError(f"live features: {n} were asked for, and {len(live)} are alive; read more tokens, or ask less")
    order = torch.randperm(len(live), generator=torch.Generator().manual_seed(seed))
    return live[order[:n]].tolist()
