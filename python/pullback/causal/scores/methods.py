"""Node scores by patching: exact, and four estimates of it from gradients.

Each says by how much the margin falls, or would fall, where a node is ablated: (n) for n nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.attribution.local import LocalModel
from pullback.causal.ablation import Ablation
from pullback.causal.gradients import output_gradients
from pullback.causal.margin import Margin
from pullback.causal.scores.patches import Patches
from pullback.causal.scores.relevance import must_act, relevance_edits, relevance_margin
from pullback.lens import Lens
from pullback.lens import record as rec
from pullback.lens.freeze import Freeze, freeze_edits


@dataclass(frozen=True)
class Problem:
    """One prompt, its nodes, what they become if ablated, and what that is measured by.

    batch_size: copies of the prompt that run together. steps: of a path between ablated and clean.
    """

    lens: Lens
    local: LocalModel
    patches: Patches
    ablation: Ablation
    margin: Margin
    hold: Freeze
    steps: int
    batch_size: int

    def run_margins(self, edits: Sequence[tuple[str, rec.Edit]], n: int) -> Tensor:
        """Margins of n copies of the prompt under edits, (n)."""
        logits, _ = self.lens.record(self.local.trace.tokens.expand(n, -1), [], [*self.held(), *edits])
        return self.margin(logits)

    def run_gradients(
        self,
        edits: Sequence[tuple[str, rec.Edit]],
        n: int = 1,
        measure: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Mean over n copies of the prompt of the gradient of a measure (None: the margin) where nodes write,
        {site: (T, d)}."""
        outputs = {site: site for site in self.patches.sites}
        tokens = self.local.trace.tokens.expand(n, -1)
        _, gradients, _ = output_gradients(
            self.lens, tokens, outputs, measure or self.margin, edits=[*self.held(), *edits]
        )
        return {site: g.mean(0) for site, g in gradients.items()}

    def held(self) -> list[tuple[str, rec.Edit]]:
        return freeze_edits(self.local.trace, self.hold)


def exact(problem: Problem) -> Tensor:
    """Activation patching: one pass for every node."""
    clean = problem.margin(problem.lens.capped(problem.local.trace.logits))
    n, scores = problem.patches.n, []
    for first in range(0, n, problem.batch_size):
        last = min(first + problem.batch_size, n)
        writes = problem.patches.one_by_one(first, last)
        edits = [(site, _less(*write)) for site, write in writes.items()]
        scores.append(clean - problem.run_margins(edits, last - first).to(clean))
    return torch.cat(scores) if scores else clean.new_zeros(0)


def _less(rows: Tensor, pos: Tensor, vectors: Tensor) -> rec.Edit:
    return lambda y: y.index_put((rows, pos), -vectors.to(y.dtype), accumulate=True)


def eap(problem: Problem) -> Tensor:
    """Attribution patching: (z - z') <W_dec, gradient of the clean run>."""
    return problem.patches.along(problem.run_gradients([]))


def eap_ig_inputs(problem: Problem) -> Tensor:
    """Gradients averaged over token embeddings ablated + (k / m) (clean - ablated), k = 0 .. m - 1 (EAP-IG)."""
    clean, m = problem.local.trace.embed, problem.steps
    ablated = problem.ablation.embed.expand_as(clean)
    path = ablated + _fractions(m, 0, clean) * (clean - ablated)
    return problem.patches.along(problem.run_gradients([("hook_embed", lambda x: path.to(x.dtype))], m))


def eap_ig_activations(problem: Problem) -> Tensor:
    """Output by output, of MLPs and of attention: gradients averaged over the nodes of one at
    (k / m) clean + (1 - k / m) ablated, k = 1 .. m.

    Summed over these nodes, the margin lost where all of them are ablated, up to O(1 / m).
    """
    m, total = problem.steps, problem.local.trace.embed.new_zeros(problem.patches.n)
    missing = 1 - _fractions(m, 1, total)
    for src in problem.patches.sources:
        edits = [(site, _less_share(missing, vectors)) for site, vectors in problem.patches.together(src).items()]
        total += problem.patches.along(problem.run_gradients(edits, m), src)
    return total


def _less_share(shares: Tensor, vectors: Tensor) -> rec.Edit:
    return lambda y: y - (shares * vectors).to(y.dtype)


def _fractions(m: int, first: int, like: Tensor) -> Tensor:
    """(first .. first + m - 1) / m, (m, 1, 1)"""
    return ((torch.arange(m, device=like.device, dtype=like.dtype) + first) / m)[:, None, None]


def relp(problem: Problem) -> Tensor:
    """Relevance patching: attribution patching with the gradients of a model whose norms, activation functions and soft
    cap are linear at what they are in the clean run."""
    lens = problem.lens
    must_act(lens, problem.local)
    measure = relevance_margin(lens, problem.margin)
    return problem.patches.along(problem.run_gradients(relevance_edits(lens), measure=measure))


METHODS: dict[str, Callable[[Problem], Tensor]] = {
    "exact": exact,
    "eap": eap,
    "eap_ig_inputs": eap_ig_inputs,
    "eap_ig_activations": eap_ig_activations,
    "relp": relp,
}
