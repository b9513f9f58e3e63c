"""How well dictionaries stand in for the outputs they were trained on: reconstruction of each layer, and the model with
all of them replaced at once.

A beginning-of-sequence token keeps its own output in every arm and is never scored, as in training (METHODS 1.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback.lens.tokens import bos_id
from pullback.training.evaluation.arms import ArmSums, Prompts, by_hooks
from pullback.training.evaluation.reconstruction import LayerSums, Pair, add_batch, sums_of
from pullback.training.evaluation.report import Report
from pullback.training.masks import without_bos
from pullback.training.source import Batch, Tokens, token_batches
from pullback.transcoders import LayeredDictionary


def evaluate(
    model: Any,
    sets: LayeredDictionary,
    tokens: Tokens,
    mask: Tensor | None = None,
    *,
    compare: Mapping[str, LayeredDictionary] | None = None,
    per_layer: bool = False,
    batch_size: int = 32,
    exclude_bos: bool = True,
    bos_token_id: int | None = None,
    verbose: bool = False,
) -> Report:
    """Measure a set on tokens. Two passes over them: the first for reconstruction and means, the second for the arms.

    The second takes four forward passes a batch, and one more for each set to compare; ablations of the same outputs
    are shared. `per_layer` adds three for each layer (one, for a set to compare): 40 in all for one set of 12 layers.

    Args:
        model: a TransformerLens model, or a `Lens` on one.
        sets: transcoders or autoencoders of some or all of its layers.
        tokens: prompts or batches, as for `train`; used once.
        mask: Bool[Tensor, 'n_prompts T'], true where a token is scored. A cross-entropy needs the next token to be true
            as well.
        compare: {name: another set}, measured on the same tokens, like autoencoders beside transcoders.
        per_layer: also replace and ablate each layer on its own.
        batch_size: prompts of one forward pass; lower it where logits do not fit into memory.
        exclude_bos: leave a beginning-of-sequence token at the first position alone.
        bos_token_id: the token that counts as one; None asks the model's tokenizer.
        verbose: show a progress bar.

    Raises:
        ValueError: a set does not fit the model, or no token is scored.
    """
    from pullback.lens import as_lens

    lens = as_lens(model)
    every = [sets, *(compare or {}).values()]
    for one in every:
        lens.check(one)
    # Kept, since a generator could not be read twice; token ids are small beside what the model makes of them.
    batches = list(token_batches(lens, tokens, batch_size=batch_size, mask=mask))
    bos = bos_id(lens, bos_token_id) if exclude_bos else None
    with tqdm(total=2 * len(batches), desc="evaluating", unit="batch", disable=not verbose) as bar, torch.no_grad():
        sums = _reconstruct(lens, every, batches, bos, bar)
        if next(iter(sums[0].values())).n == 0:
            raise ValueError(
                "evaluate: no token is scored; the mask is false everywhere, or all prompts are a lone BOS"
            )
        arms = [
            ArmSums(one, {layer: total.mean for layer, total in own.items()}, _scopes(one, per_layer))
            for one, own in zip(every, sums, strict=True)
        ]
        _run_arms(lens, arms, batches, bos, bar)
    first, *others = [_report(own, run, per_layer) for own, run in zip(sums, arms, strict=True)]
    return replace(first, compared=dict(zip(compare or {}, others, strict=True)))


def _reconstruct(
    lens: Any, every: list[LayeredDictionary], batches: list[Batch], bos: int | None, bar: Any
) -> list[dict[int, LayerSums]]:
    sums = [sums_of(one) for one in every]
    for ids, keep in batches:
        scored = without_bos(ids, keep, bos)
        if bool(scored.any()):
            for one, own in zip(every, sums, strict=True):
                io: dict[int, Pair] = {}
                for hooks, layers in by_hooks(one, one.layers).items():
                    io |= lens.mlp_io(ids, layers, *hooks)
                add_batch(own, one, io, scored)
        bar.update()
    return sums


def _scopes(sets: LayeredDictionary, per_layer: bool) -> list[tuple[int, ...]]:
    """All layers at once, and with `per_layer` each of them, which of a set of one is the same."""
    return list(dict.fromkeys([tuple(sets.layers), *((layer,) for layer in sets.layers if per_layer)]))


def _run_arms(lens: Any, every: list[ArmSums], batches: list[Batch], bos: int | None, bar: Any) -> None:
    for ids, keep in batches:
        prompts = Prompts.of(ids, keep, bos)
        if bool(prompts.following.any()):
            original = prompts.log_probabilities(lens.logits(ids))
            ablated: dict[Any, float] = {}
            for arms in every:
                arms.add(lens, prompts, original, ablated)
        bar.update()


def _report(sums: dict[int, LayerSums], arms: ArmSums, per_layer: bool) -> Report:
    figures = {layer: total.figures() for layer, total in sums.items()}

    def of_layers(name: str) -> dict[int, Any]:
        return {layer: own[name] for layer, own in figures.items()}

    return Report(
        **vars(arms.arms(tuple(sums))),
        l0=of_layers("l0"),
        fvu=of_layers("fvu"),
        cosine=of_layers("cosine"),
        explained_variance=of_layers("explained_variance"),
        dead=of_layers("dead"),
        density=of_layers("density"),
        n_tokens=next(iter(sums.values())).n,
        alone={layer: arms.arms((layer,)) for layer in sums if per_layer},
    )
