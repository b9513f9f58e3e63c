"""Expected attributions (ERA, TWERA): virtual weights counted as often as both features are there (Ameisen et al. 2025;
METHODS 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.attribution.weights.corpus import corpus_features
from pullback.attribution.weights.wiring import Wiring
from pullback.lens import as_lens
from pullback.ops import Coactivation, PairSums, SparseActivations, sampled_dot
from pullback.transcoders import LayeredDictionary

SMALLEST_MEAN = 1e-10

LayerPair = tuple[int, int]
"""(source layer, target layer)"""


@dataclass(frozen=True, eq=False)
class PairWeights:
    """What is known of the pairs (i, j) of two layers that have met on a token, as CSR over i with j ascending."""

    indptr: Tensor  # (F_source + 1) int64
    indices: Tensor  # (pairs) int32: j, of the target layer
    virtual: Tensor  # (pairs) float64: V_ij
    era: Tensor  # (pairs) float64: E[1(a_j > 0) a_i] V_ij
    twera: Tensor  # (pairs) float64: E[a_j a_i] / E[a_j] V_ij

    def rows(self) -> Tensor:
        """The source feature of each pair, (pairs)."""
        return torch.repeat_interleave(torch.arange(len(self.indptr) - 1), self.indptr.diff())

    def top_into(self, target: int, k: int = 20) -> list[tuple[int, float]]:
        """(source feature, TWERA) of the k largest into one feature, in absolute value."""
        here = (self.indices == target).nonzero()[:, 0]
        best = here[self.twera[here].abs().argsort(descending=True, stable=True)[:k]]
        return list(zip(self.rows()[best].tolist(), self.twera[best].tolist(), strict=True))


class ExpectedAttributions:
    """Sums over tokens for every pair of features of chosen layers, kept sparse, in one pass and resumable.

    Args:
        sets: the set that the activations are of.
        pairs: (source layer, target layer), each source below its target; None: all of the set.

    Attributes:
        n_prompts: prompts counted by `expected_attributions`; a run that goes on leaves out so many.
        sums: {(source, target): ops.Coactivation}.
    """

    def __init__(self, sets: LayeredDictionary, pairs: Iterable[LayerPair] | None = None) -> None:
        every = [(s, t) for s in sets.layers for t in sets.layers if s < t]
        chosen = every if pairs is None else [(int(s), int(t)) for s, t in pairs]
        wrong = [pair for pair in chosen if pair not in every]
        if wrong or not chosen:
            raise ValueError(f"expected attributions: no pairs of layers {wrong}; the set has layers {sets.layers}")
        self.n_prompts = 0
        self.sums = {(s, t): Coactivation(sets[s].d_sae, sets[t].d_sae) for s, t in dict.fromkeys(chosen)}

    @property
    def layers(self) -> list[int]:
        return sorted({layer for pair in self.sums for layer in pair})

    def add(self, acts: Mapping[int, SparseActivations]) -> ExpectedAttributions:
        """Count tokens: {layer: n rows of features}, the same tokens for every layer. Returns self."""
        for (s, t), sums in self.sums.items():
            sums.add(acts[s], acts[t])
        return self

    def merge(self, other: ExpectedAttributions) -> ExpectedAttributions:
        """Add the sums over other tokens. Returns self. Raises ValueError for other pairs of layers."""
        if list(self.sums) != list(other.sums):
            raise ValueError(f"expected attributions: pairs {list(self.sums)} and {list(other.sums)} do not add up")
        for pair, sums in self.sums.items():
            sums.merge(other.sums[pair])
        self.n_prompts += other.n_prompts
        return self

    def weights(self, model: Any, sets: LayeredDictionary, source: int, target: int) -> PairWeights:
        """ERA and TWERA of the pairs of two layers that have met; all others have 0 of either."""
        if (source, target) not in self.sums:
            raise ValueError(
                f"expected attributions: ({source}, {target}) was not counted; these were: {list(self.sums)}"
            )
        sums = self.sums[source, target]
        pairs = sums.to_csr()
        virtual = virtual_of_pairs(Wiring(model, sets), source, target, pairs)
        mean = sums.mean_b.clamp(min=SMALLEST_MEAN)[pairs.indices.long()]
        count = max(1, sums.count)
        era, twera = pairs.gated / count * virtual, pairs.products / count / mean * virtual
        return PairWeights(pairs.indptr, pairs.indices, virtual, era, twera)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything counted so far, as tensors under "source.target.name"."""
        state = {"n_prompts": torch.tensor(self.n_prompts)}
        for (s, t), sums in self.sums.items():
            state |= {f"{s}.{t}.{name}": value for name, value in sums.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> ExpectedAttributions:
        """Go on from what `state_dict` gave. Returns self. Raises ValueError where layers or features are others."""
        for pair, sums in self.sums.items():
            prefix = f"{pair[0]}.{pair[1]}."
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            loaded = Coactivation.from_state_dict(own)
            if (len(loaded.sums_a), len(loaded.sums_b)) != (len(sums.sums_a), len(sums.sums_b)):
                raise ValueError(f"expected attributions: the state of layers {pair} counts {loaded!r}, not {sums!r}")
            self.sums[pair] = loaded
        self.n_prompts = int(state["n_prompts"])
        return self


def virtual_of_pairs(wiring: Wiring, source: int, target: int, pairs: PairSums) -> Tensor:
    """V_ij of the stored pairs alone, (pairs) float64: nothing of size F x F."""
    wiring.must_follow(source, target)
    written = wiring.as_read(target, wiring.writes(source, target))
    W_enc = wiring.sets[target].W_enc.detach().to(written.dtype)
    indptr, indices = pairs.indptr.to(written.device), pairs.indices.to(written.device)
    return sampled_dot(written, W_enc, indptr, indices).double().cpu()


@torch.no_grad()
def expected_attributions(
    model: Any,
    sets: LayeredDictionary,
    tokens: Tensor | Iterable[Tensor],
    pairs: Sequence[LayerPair] | None = None,
    *,
    mask: Tensor | None = None,
    batch_size: int = 32,
    exclude_bos: bool = True,
    into: ExpectedAttributions | None = None,
    strict: bool = True,
    verbose: bool = False,
) -> ExpectedAttributions:
    """One pass over tokens that counts every pair of features of chosen layers that meet on a token.

    Args:
        model, sets: a model and its transcoders.
        tokens: Int[Tensor, 'n T'], or batches of prompts of one length each.
        pairs: (source layer, target layer); None: all of the set.
        mask: Bool[Tensor, 'n T'], true where a token counts (padding does not); with a tensor of tokens only.
        batch_size: prompts of one forward pass, where tokens is one tensor.
        exclude_bos: leave a beginning-of-sequence token at the first position out, as the model's tokenizer has it.
        into: sums to go on with: `pairs` are its own, and as many prompts as it has seen are passed over. So a run that
            was interrupted goes on from the `state_dict` of its last batch.
        strict: False accepts transcoders of a fine-tuned sibling.
        verbose: show a progress bar.

    Raises:
        ValueError: a set that does not fit the model, tokens it cannot read, a mask of another shape, pairs beside
            those of `into`.
    """
    if into is not None and pairs is not None:
        raise ValueError("expected attributions: `into` has its pairs of layers; leave out pairs")
    lens = as_lens(model)
    fitted = lens.fitted(sets, strict=strict)
    found = ExpectedAttributions(fitted, pairs) if into is None else into
    batches = corpus_features(
        lens,
        fitted,
        found.layers,
        tokens,
        mask=mask,
        batch_size=batch_size,
        exclude_bos=exclude_bos,
        passed=found.n_prompts,
        verbose=verbose,
        what="expected attributions",
    )
    for n_prompts, acts in batches:
        found.add(acts)
        found.n_prompts += n_prompts
    return found
