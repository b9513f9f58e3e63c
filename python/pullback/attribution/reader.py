"""One target of a graph, read against one prompt of one model."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution import targets as at
from pullback.attribution.asked import DirectionTarget, FeatureTarget, LogitDifference, LogitTarget, Target
from pullback.attribution.local import LocalModel
from pullback.attribution.targets import ENCODERS, Targets
from pullback.lens import INPUT_SITES, Lens
from pullback.lens.depth import before_block


class Entry(NamedTuple):
    """One thing to explain that is not an active feature."""

    kind: int
    feature: int
    value: Tensor
    activation: Tensor
    weight: float | Tensor
    label: str
    target: Targets  # one row


class Reader:
    """Reads targets against one prompt of one model."""

    def __init__(self, lens: Lens, local: LocalModel, position: int) -> None:
        self.lens, self.local = lens, local
        self.n_directions = 0
        self._of_position: dict[int, Tensor] = {}
        self.pos = self._position(position)

    def read(self, target: Target) -> Entry | int:
        """What the target is; of an active feature, its place among the active ones."""
        if isinstance(target, LogitTarget):
            return self._logit(target)
        if isinstance(target, LogitDifference):
            return self._difference(target)
        return self._feature(target) if isinstance(target, FeatureTarget) else self._direction(target)

    # ---- logits ---------------------------------------------------------------------------------------------------

    @cached_property
    def mean_column(self) -> Tensor:
        return self.local.trace.W_U.mean(1)

    def _probabilities(self, pos: int) -> Tensor:
        if pos not in self._of_position:
            self._of_position[pos] = torch.softmax(self.lens.capped(self.local.trace.logits[pos]), -1)
        return self._of_position[pos]

    def salient(self, max_n_logits: int, desired_logit_prob: float) -> list[Target]:
        if max_n_logits < 1 or not 0 < desired_logit_prob <= 1:
            raise ValueError(
                "attribute: max_n_logits must be at least 1 and desired_logit_prob in (0, 1], got "
                f"{max_n_logits}, {desired_logit_prob}"
            )
        probabilities = self._probabilities(self.pos)
        top = torch.topk(probabilities, min(max_n_logits, probabilities.numel()))
        reached = torch.cumsum(top.values, 0) < desired_logit_prob
        return [LogitTarget(int(token)) for token in top.indices[: int(reached.sum()) + 1]]

    def _combination(self, pos: int, ids: list[int], coefficients: list[float]) -> tuple[Tensor, Targets]:
        """Its value, and the functional: unembedding columns minus the mean column, so that what is combined are
        demeaned logits (before any soft cap)."""
        t = self.local.trace
        c = t.W_U.new_tensor(coefficients)
        direction = (t.W_U[:, ids] - self.mean_column[:, None]) @ c
        own = (t.b_U[ids] - t.b_U.mean()) @ c + t.ln_final.bias_vector(t.embed[0]) @ direction
        value = (t.logits[pos, ids] - t.logits[pos].mean()) @ c
        return value, self._functional(self.local.n_layers, at.FINAL, pos, direction, own)

    def _logit(self, target: LogitTarget) -> Entry:
        pos, token = self._position(target.position), token_id(self.lens, target.token)
        probability = self._probabilities(pos)[token]
        value, functional = self._combination(pos, [token], [1.0])
        weight = probability if target.weight is None else target.weight
        label = self.lens.to_str_tokens(torch.tensor([token]))[0]
        return Entry(k.LOGIT, token, value, probability, weight, label, functional)

    def _difference(self, target: LogitDifference) -> Entry:
        ids, coefficients = terms(self.lens, target)
        pos = self._position(target.position)
        value, functional = self._combination(pos, ids, coefficients)
        return self._described(target, value, spelled(self.lens, ids, coefficients), functional)

    # ---- features and directions ----------------------------------------------------------------------------------

    def _feature(self, target: FeatureTarget) -> Entry | int:
        local = self.local
        layer, feature = whole(target.layer, "the layer of a feature"), whole(target.feature, "the id of a feature")
        kind = "attn_features" if target.attention else "features"
        if (kind, layer) not in local.active:
            what = "autoencoders of attention" if target.attention else "transcoders"
            layers = [own for of_kind, own in local.active if of_kind == kind]
            if not layers:
                raise ValueError(f"attribute: {target!r}: there are no {what} here; give attention_saes")
            raise ValueError(f"attribute: {target!r}: there are {what} at layers {layers} only")
        acts, pos = local.active[kind, layer], self._position(target.position)
        if not 0 <= feature < acts.n_features:
            raise ValueError(f"attribute: {target!r}: layer {layer} has features 0..{acts.n_features - 1}")
        row = slice(int(acts.indptr[pos]), int(acts.indptr[pos + 1]))
        hit = (acts.indices[row] == feature).nonzero()
        if len(hit):
            first = local.layout.of_kind(kind)[layer].start - local.layout.all_features.start
            return first + row.start + int(hit[0, 0])
        where = torch.tensor([pos], device=self.lens.device)
        ids = torch.tensor([feature], device=self.lens.device)
        block = local.trace.layers[layer]
        if target.attention:
            node, sets, x = k.ATTENTION_FEATURE, local.attention.sets, block.attn_out
        else:
            node, sets, x = k.FEATURE, local.sets, block.read(local.sets.hook_in(layer))
        h = sets[layer].preactivations(x, where, ids)[0]
        functional = ENCODERS[kind](local.stack, layer, where, ids)
        return Entry(node, feature, h, torch.zeros_like(h), target.weight, "", functional)

    def _direction(self, target: DirectionTarget) -> Entry:
        lens, t = self.lens, self.local.trace
        vector = torch.as_tensor(target.vector).detach().to(t.embed)
        if vector.shape != (lens.d_model,) or not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
            raise ValueError(
                f"attribute: the vector of a direction must be [{lens.d_model}], finite and not 0, got "
                f"{list(vector.shape)}"
            )
        pos = self._position(target.position)
        layer, site = place_of(self.lens, target.site)
        if site == at.FINAL:
            x, bias = t.ln_final(t.stream(before_block(layer)), t.final_scale), t.ln_final.bias_vector(vector)
        elif site == at.BEFORE_BLOCK:
            x, bias = t.stream(before_block(layer)), torch.zeros_like(vector)
        else:
            x, bias = t.layers[layer].read(at.SITES[site]), t.layers[layer].read_bias(at.SITES[site])
        functional = self._functional(layer, site, pos, vector, bias @ vector)
        return self._described(target, x[pos] @ vector, f"direction at {target.site}", functional)

    def _described(
        self, target: LogitDifference | DirectionTarget, value: Tensor, label: str, functional: Targets
    ) -> Entry:
        number, self.n_directions = self.n_directions, self.n_directions + 1
        one = torch.ones_like(value)
        return Entry(k.DIRECTION, number, value, one, target.weight, target.label or label, functional)

    # ---- common ---------------------------------------------------------------------------------------------------

    def _position(self, position: int | None) -> int:
        if position is None:
            return self.pos
        T, position = self.local.n_pos, whole(position, "a position")
        if not -T <= position < T:
            raise ValueError(f"attribute: position {position} lies outside the prompt, which has {T} tokens")
        return position % T

    def _functional(self, layer: int, site: int, pos: int, vector: Tensor, own: Tensor) -> Targets:
        def column(value: int) -> Tensor:
            return torch.tensor([value], device=vector.device)

        return Targets(column(layer), column(site), column(pos), column(0), own[None], vector[None])


def terms(lens: Lens, target: LogitDifference) -> tuple[list[int], list[float]]:
    """Token ids and their coefficients."""
    if isinstance(target.tokens, Mapping):
        tokens, coefficients = list(target.tokens), [float(c) for c in target.tokens.values()]
    else:
        tokens, coefficients = list(target.tokens), [1.0, -1.0]
        if len(tokens) != 2:
            raise ValueError(
                f"attribute: a difference takes two tokens, or a coefficient for each; got {len(tokens)} tokens"
            )
    ids = [token_id(lens, token) for token in tokens]
    if not any(coefficients) or len(set(ids)) < len(ids):
        raise ValueError(f"attribute: a difference of logits needs different tokens, not all 0: {target.tokens!r}")
    return ids, coefficients


def spelled(lens: Lens, ids: list[int], coefficients: list[float]) -> str:
    """A combination of logits in words."""
    terms = zip(coefficients, lens.to_str_tokens(torch.tensor(ids)), strict=True)
    label = " ".join(f"{'-' if c < 0 else '+'} {'' if abs(c) == 1 else f'{abs(c):g} '}{word}" for c, word in terms)
    return label.removeprefix("+ ")


def place_of(lens: Lens, name: str) -> tuple[int, int]:
    """(layer, index into SITES) of a full hook name."""
    L = lens.n_layers
    if name == "ln_final":
        return L, at.FINAL
    parts = name.split(".", 2)
    if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdecimal() and int(parts[1]) < L:
        layer, hook = int(parts[1]), parts[2]
        if hook == "hook_resid_pre":
            return layer, at.BEFORE_BLOCK
        if hook == "hook_resid_post":
            return layer + 1, at.BEFORE_BLOCK
        if hook in INPUT_SITES:
            lens.input_site(layer, hook)
            return layer, at.site_index(hook)
    raise ValueError(
        f"attribute: no direction can be read at '{name}'; give ln_final, or blocks.{{0..{L - 1}}}. and one of "
        f"hook_resid_pre, hook_resid_post, {', '.join(INPUT_SITES)}"
    )


def whole(value: Any, what: str) -> int:
    """Also of numpy and of tensors with one element."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"attribute: {what} must be a whole number, got {value!r}") from error


def token_id(lens: Lens, token: Any, who: str = "attribute") -> int:
    """A string must be one token. `who` asks, in the words of an error."""
    if isinstance(token, str):
        if getattr(lens.model, "tokenizer", None) is None:
            raise ValueError(f"{who}: this model has no tokenizer to read the target '{token}'; give its token id")
        ids = lens.model.to_tokens(token, prepend_bos=False)[0]
        if ids.numel() != 1:
            raise ValueError(f"{who}: the target '{token}' is {ids.numel()} tokens; a target must be one token")
        return int(ids[0])
    try:
        number = operator.index(token)  # also of numpy and of tensors with one element
    except TypeError as error:
        raise ValueError(
            f"{who}: a target is a token id or a string of one token, or a LogitTarget, LogitDifference, "
            f"FeatureTarget or DirectionTarget; got {token!r}"
        ) from error
    if not 0 <= number < lens.d_vocab:
        raise ValueError(f"{who}: target tokens must lie in 0..{lens.d_vocab - 1}, got {number}")
    return number
