"""What ablated nodes become: nothing, their mean over a corpus, or what they are in another prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pullback.attribution.local import local_model
from pullback.causal.intervene import held, run_from, values_at
from pullback.causal.places import Feature, Place, Placed, Supernode, fitted, parsed, placed
from pullback.lens import as_lens, trace
from pullback.ops import SparseActivations
from pullback.transcoders import LayeredDictionary


@dataclass(frozen=True, eq=False)
class Ablation:
    """Values of features, errors and token embeddings that stand in for a prompt's own.

    Either one row for any position, or a row for each of T positions. Made by `zero`, `mean` and `resample`.
    `attention` has those of attention outputs, where there are autoencoders of them.
    """

    kind: str
    acts: dict[int, SparseActivations]  # layer -> 1 or T rows
    errors: dict[int, Tensor]  # layer -> (1 or T, d)
    embed: Tensor  # (1 or T, d)
    attention: Ablation | None = None

    @staticmethod
    def zero(model: Any, sets: LayeredDictionary, *, attention_saes: LayeredDictionary | None = None) -> Ablation:
        """Nothing: 0 for every feature, error and embedding."""
        lens = as_lens(model)
        nothing = torch.zeros(1, lens.d_model, dtype=lens.compute_dtype, device=lens.device)
        acts = {i: SparseActivations.from_dense(nothing.new_zeros(1, sets[i].d_sae)) for i in sets.layers}
        attention = None if attention_saes is None else Ablation.zero(lens, attention_saes)
        return Ablation("zero", acts, dict.fromkeys(range(lens.n_layers), nothing), nothing, attention)

    @staticmethod
    def mean(
        model: Any,
        sets: LayeredDictionary,
        prompts: Iterable[str | Sequence[int] | Tensor],
        *,
        positions: slice = slice(None),
        attention_saes: LayeredDictionary | None = None,
        strict: bool = True,
    ) -> Ablation:
        """The mean over all tokens of a corpus, at `positions` of each prompt (`slice(1, None)` leaves BOS out).

        Raises ValueError where no token is left.
        """
        if isinstance(prompts, str):
            raise ValueError("Ablation.mean: prompts is one string; give a list of prompts")
        lens = as_lens(model)
        n, total = 0, dict[Any, Tensor]()
        for prompt in prompts:
            local = local_model(lens, sets, lens.to_tokens(prompt), strict=strict, attention_saes=attention_saes)
            chosen = range(local.n_pos)[positions]
            rows = torch.tensor(list(chosen), dtype=torch.long, device=lens.device)
            n += len(rows)
            parts: dict[Any, Tensor] = {("errors", i): e[rows].sum(0) for i, e in enumerate(local.errors)}
            parts |= {("attn_errors", i): e[rows].sum(0) for i, e in local.attention.errors.items()}
            parts["embed"] = local.trace.embed[rows].sum(0)
            for which, acts in local.active.items():
                here = torch.isin(acts.rows(), rows)
                sums = acts.values.new_zeros(acts.n_features)
                parts[which] = sums.index_add_(0, acts.indices[here].long(), acts.values[here])
            for key, part in parts.items():
                total[key] = total[key] + part if key in total else part
        if not n:
            raise ValueError(
                "mean ablation: there is no token to take the mean over; give prompts, and positions in them"
            )
        mean = {key: (part / n)[None] for key, part in total.items()}

        def made(prefix: str, layers: Iterable[int], errors: Iterable[int], attention: Ablation | None) -> Ablation:
            acts = {i: SparseActivations.from_dense(mean[f"{prefix}features", i]) for i in layers}
            return Ablation("mean", acts, {i: mean[f"{prefix}errors", i] for i in errors}, mean["embed"], attention)

        saes = attention_saes
        at_attention = None if saes is None else made("attn_", saes.layers, saes.layers, None)
        return made("", sets.layers, range(lens.n_layers), at_attention)

    @staticmethod
    def resample(
        model: Any,
        sets: LayeredDictionary,
        prompt: str | Sequence[int] | Tensor,
        *,
        attention_saes: LayeredDictionary | None = None,
        strict: bool = True,
    ) -> Ablation:
        """What nodes are in another prompt, position by position; it must be as long as the one that is ablated."""
        lens = as_lens(model)
        local = local_model(lens, sets, lens.to_tokens(prompt), strict=strict, attention_saes=attention_saes)
        found, embed = local.attention, local.trace.embed
        attention = None if attention_saes is None else Ablation("resample", found.acts, found.errors, embed)
        return Ablation("resample", local.acts, dict(enumerate(local.errors)), embed, attention)

    def without_errors(self) -> Ablation:
        """The same, with 0 for errors."""
        attention = None if self.attention is None else self.attention.without_errors()
        return replace(self, errors={i: torch.zeros_like(e) for i, e in self.errors.items()}, attention=attention)

    def must_fit(self, T: int) -> None:
        """Raises ValueError for values of a prompt of another length."""
        if self.embed.shape[0] not in (1, T):
            raise ValueError(
                f"resample ablation: the prompt has {T} tokens, and the one that values are taken from "
                f"{self.embed.shape[0]}; they must be as long as each other"
            )

    def of(self, *, attention: bool) -> Ablation:
        """Of MLPs, or of attention outputs. Raises ValueError where it has none of these."""
        found = self.attention if attention else self
        if found is None:
            raise ValueError("the ablation says nothing of features of attention; give it attention_saes too")
        return found

    def features(self, layer: int, pos: Tensor, ids: Tensor) -> Tensor:
        """Values of features `ids` (n) at positions (n)."""
        acts = self.acts[layer]
        return values_at(acts, pos if acts.n_rows > 1 else torch.zeros_like(pos), ids)

    def error(self, layer: int, pos: Tensor) -> Tensor:
        """Errors at positions (n), (n, d)."""
        errors = self.errors[layer]
        return errors[pos] if len(errors) > 1 else errors.expand(len(pos), -1)


def ablate(
    model: Any,
    sets: LayeredDictionary,
    prompt: str | Sequence[int] | Tensor,
    features: Supernode | Sequence[Feature],
    ablation: Ablation | None = None,
    *,
    freeze: str | None = "attention",
    constrained_layers: Iterable[int] | None = None,
    attention_saes: LayeredDictionary | None = None,
    strict: bool = True,
) -> Tensor:
    """Logits (T, V) with features set to what an ablation makes of them (None: zero).

    features: (layer, position, feature) or a `FeatureTarget` each, or a `Supernode`; positions may be slices. Otherwise
    as `intervene`.
    """
    lens = as_lens(model)
    base = trace(lens, lens.to_tokens(prompt))
    dictionaries = fitted(lens, sets, attention_saes, strict=strict)
    if ablation is None:
        ablation = Ablation.zero(lens, dictionaries[0], attention_saes=attention_saes)
    ablation.must_fit(base.n_pos)
    hold = held(lens, dictionaries, freeze, constrained_layers)
    group = features if isinstance(features, Supernode) else Supernode("features", tuple(features))
    wanted = placed(dictionaries, base.n_pos, parsed([(group, 0.0)]))

    def ablated(place: Place, places: Placed) -> Placed:
        attention, layer = place
        pos, ids = places.positions.to(lens.device), places.ids.to(lens.device)
        amounts = ablation.of(attention=attention).features(layer, pos, ids)
        return replace(places, amounts=amounts, relative=torch.zeros_like(pos, dtype=torch.bool))

    changed = {place: ablated(place, places) for place, places in wanted.items()}
    return run_from(lens, dictionaries, base, changed, hold).logits
