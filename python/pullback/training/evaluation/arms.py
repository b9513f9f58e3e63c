"""The arms: a model whose outputs at some layers are replaced by reconstructions, by their means, or by zero.

Every arm edits the same positions and is scored on the same predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pullback.lens import stand_ins
from pullback.training.evaluation.report import Arms
from pullback.training.masks import without_bos
from pullback.transcoders import LayeredDictionary

Edit = Callable[[Tensor, Tensor], Tensor]
Scope = tuple[int, ...]
"""Layers that are replaced together."""
Hooks = tuple[str, str]


@dataclass(frozen=True)
class Prompts:
    """A batch: which of its positions are edited, and which predictions are scored."""

    ids: Tensor  # (B, T)
    edited: Tensor  # Bool (B, T): everywhere but at BOS
    following: Tensor  # Bool (B, T-1): this token and the next one count
    answers: Tensor  # (n) the tokens that are predicted there

    @classmethod
    def of(cls, ids: Tensor, keep: Tensor, bos: int | None) -> Prompts:
        following = without_bos(ids, keep, bos)[:, :-1] & keep[:, 1:]
        return cls(ids, without_bos(ids, torch.ones_like(keep), bos), following, ids[:, 1:][following])

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """logits (B, T, V) -> (n, V), of the scored predictions."""
        chosen = logits[:, :-1][self.following.to(logits.device)]
        return chosen.to(torch.promote_types(chosen.dtype, torch.float32)).log_softmax(-1)

    def cross_entropy(self, log_p: Tensor) -> float:
        """Sum of -log p(answer)."""
        return -float(log_p.gather(1, self.answers.to(log_p.device)[:, None]).double().sum())


class ArmSums:
    """Sums over batches of one dictionary's arms, a scope at a time.

    Args:
        sets: the dictionary.
        means: {layer: Float[Tensor, 'd']}, of its targets.
        scopes: layers that are replaced together.
    """

    def __init__(self, sets: LayeredDictionary, means: Mapping[int, Tensor], scopes: Iterable[Scope]) -> None:
        self.sets = sets
        self.means = means
        self.totals = {scope: dict.fromkeys(Arms.__dataclass_fields__, 0.0) for scope in scopes}
        self.n = 0

    def add(self, lens: Any, prompts: Prompts, original: Tensor, ablated: dict[Any, float]) -> None:
        """Run every arm on a batch.

        Args:
            original: Float[Tensor, 'n V'], log-probabilities of the unchanged model.
            ablated: cross-entropies of ablations that were run on this batch, which other dictionaries may share.
        """
        for scope, totals in self.totals.items():
            totals["ce_original"] += prompts.cross_entropy(original)
            log_q = prompts.log_probabilities(self._run(lens, prompts, stand_ins(self.sets, scope)))
            totals["ce_replaced"] += prompts.cross_entropy(log_q)
            totals["kl"] += float((original.exp() * (original - log_q)).sum(-1).double().sum())
            totals["top1_agreement"] += float((original.argmax(-1) == log_q.argmax(-1)).sum())
            for name, rule in (("ce_mean_ablated", self._mean), ("ce_zero_ablated", _zero)):
                key = name, tuple((layer, self.sets.hook_out(layer)) for layer in scope)
                if key not in ablated:
                    logits = self._run(lens, prompts, {layer: partial(rule, layer) for layer in scope})
                    ablated[key] = prompts.cross_entropy(prompts.log_probabilities(logits))
                totals[name] += ablated[key]
        self.n += len(prompts.answers)

    def arms(self, scope: Scope) -> Arms:
        return Arms(**{name: total / self.n if self.n else float("nan") for name, total in self.totals[scope].items()})

    def _mean(self, layer: int, _x: Tensor, y: Tensor) -> Tensor:
        return self.means[layer].to(y).expand_as(y)

    def _run(self, lens: Any, prompts: Prompts, fns: Mapping[int, Edit]) -> Tensor:
        """Logits with each layer's output y replaced by fns[layer](x, y) at the edited positions."""

        def edit(fn: Edit, x: Tensor, y: Tensor) -> Tensor:
            return torch.where(prompts.edited.to(y.device)[..., None], fn(x, y).to(y), y)

        with ExitStack() as stack:
            for hooks, layers in by_hooks(self.sets, fns).items():
                edits = {layer: partial(edit, fns[layer]) for layer in layers}
                stack.enter_context(lens.patch_mlp(edits, hook_in=hooks[0], hook_out=hooks[1]))
            return lens.logits(prompts.ids)


def _zero(_layer: int, _x: Tensor, y: Tensor) -> Tensor:
    return torch.zeros_like(y)


def by_hooks(sets: LayeredDictionary, layers: Iterable[int]) -> dict[Hooks, list[int]]:
    """Layers grouped by (hook_in, hook_out), since one call of the lens serves one pair."""
    groups: dict[Hooks, list[int]] = {}
    for layer in layers:
        groups.setdefault((sets.hook_in(layer), sets.hook_out(layer)), []).append(layer)
    return groups
