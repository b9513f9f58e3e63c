"""How well transcoders stand in for the MLPs: reconstruction of each layer, and the model with all of them replaced at
once.

Every arm (replaced, mean-ablated, zero-ablated) edits the same positions and is scored on the same tokens. A
beginning-of-sequence token keeps its own MLP output in all of them and is never scored, as in training (METHODS 1.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback.ops import SparseActivations
from pullback.training.masks import bos_id, without_bos
from pullback.training.source import Batch, Tokens, token_batches
from pullback.transcoders import FeatureLayer, LayeredDictionary, StandIn

Edit = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Report:
    """What `evaluate` measured. Cross-entropies and KL are means over scored tokens, in nats.

    Attributes:
        l0: {layer: mean number of active features a token}. Like the next three: on inputs from the unchanged model.
        fvu: {layer: fraction of variance unexplained, sum ||y - yhat||^2 / sum ||y - mean y||^2}
        explained_variance: {layer: 1 - variance of the residual / variance of y, each about its own mean}
        dead: {layer: share of features that fired on no scored token}
        ce_original: next-token loss of the model.
        ce_replaced: the same with the MLPs of all these layers replaced by their transcoders.
        ce_mean_ablated: the same with their outputs replaced by their means over the scored tokens.
        ce_zero_ablated: the same with their outputs set to zero.
        ce_recovered: (ce_mean_ablated - ce_replaced) / (ce_mean_ablated - ce_original); 1 is perfect, 0 as bad as the
            mean.
        kl: KL(original || replaced) of the next-token distributions, over the predictions that the losses score.
        top1_agreement: share of these predictions in which both put the same token first.
        n_tokens: scored tokens.
    """

    l0: dict[int, float]
    fvu: dict[int, float]
    explained_variance: dict[int, float]
    dead: dict[int, float]
    ce_original: float
    ce_replaced: float
    ce_mean_ablated: float
    ce_zero_ablated: float
    ce_recovered: float
    kl: float
    top1_agreement: float
    n_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Reconstruction, a line a layer."""
        lines = [f"{'layer':>5} {'l0':>8} {'fvu':>8} {'ev':>8} {'dead':>8}"]
        for layer, l0 in self.l0.items():
            quality = f"{self.fvu[layer]:>8.4f} {self.explained_variance[layer]:>8.4f} {self.dead[layer]:>8.2%}"
            lines.append(f"{layer:>5} {l0:>8.2f} {quality}")
        return "\n".join(lines)

    def arms(self) -> str:
        """The model with all these layers replaced, beside its ablations."""
        arms = ("original", "replaced", "mean_ablated", "zero_ablated")
        losses = "CE  " + ", ".join(f"{arm.replace('_', ' ')} {getattr(self, f'ce_{arm}'):.4f}" for arm in arms)
        share = f"top-1 agreement {self.top1_agreement:.2%}"
        return f"{losses}\nCE recovered {self.ce_recovered:.4f}, KL {self.kl:.4f}, {share} ({self.n_tokens:,} tokens)"

    def __str__(self) -> str:
        return f"{self.table()}\n{self.arms()}"


def evaluate(
    model: Any,
    sets: LayeredDictionary,
    tokens: Tokens,
    mask: Tensor | None = None,
    *,
    batch_size: int = 32,
    exclude_bos: bool = True,
    bos_token_id: int | None = None,
    verbose: bool = False,
) -> Report:
    """Measure a set on tokens. Two passes over them: the first for reconstruction and means, the second for the four
    arms.

    Args:
        model: a TransformerLens model, or a `Lens` on one.
        sets: transcoders, per-layer or cross-layer, of some or all of its layers.
        tokens: prompts or batches, as for `train`; used once.
        mask: Bool[Tensor, 'n_prompts T'], true where a token is scored. A cross-entropy needs the next token to be true
            as well.
        batch_size: prompts of one forward pass; lower it where logits do not fit into memory.
        exclude_bos: leave a beginning-of-sequence token at the first position alone.
        bos_token_id: the token that counts as one; None asks the model's tokenizer.
        verbose: show a progress bar.

    Raises:
        ValueError: the set does not fit the model, or no token is scored.
    """
    from pullback.lens import as_lens

    lens = as_lens(model)
    lens.check(sets)
    # Kept, since a generator could not be read twice; token ids are small beside what the model makes of them.
    batches = list(token_batches(lens, tokens, batch_size=batch_size, mask=mask))
    bos = bos_id(lens, bos_token_id) if exclude_bos else None
    with tqdm(total=2 * len(batches), desc="evaluating", unit="batch", disable=not verbose) as bar, torch.no_grad():
        sums = {layer: _LayerSums(features) for layer, features in sets.items()}
        for ids, keep in batches:
            scored = without_bos(ids, keep, bos)
            if bool(scored.any()):
                _add_batch(lens, sets, ids, scored, sums)
            bar.update()
        n_tokens = next(iter(sums.values())).n
        if n_tokens == 0:
            raise ValueError(
                "evaluate: no token is scored; the mask is false everywhere, or all prompts are a lone BOS"
            )
        arms = _compare_arms(lens, sets, {layer: total.mean for layer, total in sums.items()}, batches, bos, bar)
    span = arms["ce_mean_ablated"] - arms["ce_original"]
    return Report(
        l0={layer: total.active / total.n for layer, total in sums.items()},
        fvu={layer: _ratio(total.squared_error, total.targets.scatter) for layer, total in sums.items()},
        explained_variance={
            layer: 1 - _ratio(total.residuals.scatter, total.targets.scatter) for layer, total in sums.items()
        },
        dead={layer: 1 - float(total.fired.double().mean()) for layer, total in sums.items()},
        ce_recovered=(arms["ce_mean_ablated"] - arms["ce_replaced"]) / span if span != 0 else float("nan"),
        n_tokens=n_tokens,
        **arms,
    )


def _add_batch(lens: Any, sets: LayeredDictionary, ids: Tensor, scored: Tensor, sums: dict[int, _LayerSums]) -> None:
    """Features and reconstructions of all layers on one batch of prompts, on inputs from the unchanged model."""
    io: dict[int, tuple[Tensor, Tensor]] = {}
    for hooks, layers in _by_hooks(sets).items():
        for layer, (x, y) in lens.mlp_io(ids, layers, *hooks).items():
            at = scored.to(x.device)
            io[layer] = x[at], y[at]
    acts = {layer: sets.encode(layer, x) for layer, (x, _) in io.items()}
    for layer, (x, y) in io.items():
        sums[layer].add(acts[layer], sets.output(acts, layer, x), y)


def _by_hooks(sets: LayeredDictionary) -> dict[tuple[str, str], list[int]]:
    """Layers grouped by (hook_in, hook_out), since one call of the lens serves one pair."""
    groups: dict[tuple[str, str], list[int]] = {}
    for layer in sets.layers:
        groups.setdefault((sets.hook_in(layer), sets.hook_out(layer)), []).append(layer)
    return groups


class _Moments:
    """Mean and summed squared deviation of rows, in float64, by the pairwise update of Chan, Golub and LeVeque."""

    def __init__(self) -> None:
        self.n = 0
        self.mean: Tensor | float = 0.0
        self.scatter = 0.0

    def add(self, rows: Tensor) -> None:
        mean, n = rows.mean(0), len(rows)
        shift = mean - self.mean
        self.scatter += float((rows - mean).square().sum() + shift.square().sum() * (self.n * n / (self.n + n)))
        self.mean = self.mean + shift * (n / (self.n + n))
        self.n += n


class _LayerSums:
    """Running sums over the scored tokens of one layer."""

    def __init__(self, features: FeatureLayer) -> None:
        self.targets, self.residuals = _Moments(), _Moments()
        self.squared_error = 0.0
        self.active = 0
        self.fired = torch.zeros(features.d_sae, dtype=torch.bool, device=features.device)

    @property
    def n(self) -> int:
        return self.targets.n

    @property
    def mean(self) -> Tensor:
        return torch.as_tensor(self.targets.mean)

    def add(self, acts: SparseActivations, y_hat: Tensor, y: Tensor) -> None:
        target = y.to(y_hat.device).double()
        residual = target - y_hat.double()
        self.targets.add(target)
        self.residuals.add(residual)
        self.squared_error += float(residual.square().sum())
        self.active += acts.nnz
        self.fired[acts.indices.long()] = True


def _ratio(part: float, whole: float) -> float:
    """part / whole; targets that do not vary are explained perfectly by an exact output and not at all by any other."""
    if whole > 0:
        return part / whole
    return 0.0 if part == 0 else float("inf")


def _compare_arms(
    lens: Any,
    sets: LayeredDictionary,
    means: dict[int, Tensor],
    batches: Iterable[Batch],
    bos: int | None,
    bar: Any,
) -> dict[str, float]:
    """Cross-entropy of the four arms, and KL and top-1 agreement of the replaced one."""
    stand_in = StandIn(sets)
    arms: dict[str, Callable[[int, Tensor, Tensor], Tensor]] = {
        "ce_replaced": lambda layer, x, _y: stand_in(layer, x),
        "ce_mean_ablated": lambda layer, _x, y: means[layer].to(y).expand_as(y),
        "ce_zero_ablated": lambda _layer, _x, y: torch.zeros_like(y),
    }
    totals = dict.fromkeys(("ce_original", *arms, "kl", "top1_agreement"), 0.0)
    n = 0
    for ids, keep in batches:
        scored = without_bos(ids, keep, bos)
        # True where the MLPs are edited: everywhere but at BOS.
        edited = without_bos(ids, torch.ones_like(keep), bos)
        if bool(scored.any()):
            following = scored[:, :-1] & keep[:, 1:]
            answers = ids[:, 1:][following]
            original = _log_probabilities(lens.logits(ids))
            totals["ce_original"] += _cross_entropy(original, following, answers)
            for name, rule in arms.items():
                log_p = _log_probabilities(_edited_logits(lens, sets, ids, edited, rule))
                totals[name] += _cross_entropy(log_p, following, answers)
                if name == "ce_replaced":
                    at = following.to(log_p.device)
                    p, q = original[:, :-1][at], log_p[:, :-1][at]
                    totals["kl"] += float((p.exp() * (p - q)).sum(-1).double().sum())
                    totals["top1_agreement"] += float((p.argmax(-1) == q.argmax(-1)).sum())
            n += int(following.sum())
        bar.update()
    return {name: total / n if n else float("nan") for name, total in totals.items()}


def _edited_logits(
    lens: Any, sets: LayeredDictionary, ids: Tensor, edited: Tensor, rule: Callable[[int, Tensor, Tensor], Tensor]
) -> Tensor:
    def edit(layer: int, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(edited.to(y.device)[..., None], rule(layer, x, y).to(y), y)

    with ExitStack() as stack:
        for (hook_in, hook_out), layers in _by_hooks(sets).items():
            fns: dict[int, Edit] = {layer: partial(edit, layer) for layer in layers}
            stack.enter_context(lens.patch_mlp(fns, hook_in=hook_in, hook_out=hook_out))
        return lens.logits(ids)


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _cross_entropy(log_p: Tensor, following: Tensor, answers: Tensor) -> float:
    """Sum of -log p(next token) over the positions where `following` is true."""
    chosen = log_p[:, :-1][following.to(log_p.device)]
    return -float(chosen.gather(1, answers.to(log_p.device)[:, None]).double().sum())
