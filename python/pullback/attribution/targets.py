"""What a graph explains: logits, and the pre-activations of features."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.attribution.local import LocalModel
from pullback.lens import Lens


@dataclass(frozen=True)
class Targets:
    """A batch of B linear functionals <v, x at a site> + constant, sorted as the caller likes.

    layer: (B), the site's layer; n_layers stands for ln_final's output. pos: (B). vectors: (B, d), as read at the
    site. own: (B), the constant that belongs to the target itself (b_enc and the norm's bias, or b_U minus its mean).
    """

    layer: Tensor
    pos: Tensor
    vectors: Tensor
    own: Tensor

    def __len__(self) -> int:
        return self.layer.shape[0]

    def __getitem__(self, which: Tensor | slice) -> Targets:
        return Targets(self.layer[which], self.pos[which], self.vectors[which], self.own[which])


@dataclass(frozen=True)
class LogitTargets:
    """The logits to explain at one position: token ids (K), probabilities (K), directions (d, K) after ln_final."""

    tokens: Tensor
    labels: list[str]
    probabilities: Tensor
    directions: Tensor
    own: Tensor
    values: Tensor
    pos: int


def salient_logits(
    lens: Lens,
    local: LocalModel,
    max_n_logits: int,
    desired_logit_prob: float,
    chosen: int | str | Sequence[int | str] | Tensor | None,
) -> LogitTargets:
    """The fewest top tokens at the last position that reach `desired_logit_prob`, at most `max_n_logits`; or `chosen`.

    Directions are unembedding columns minus the mean column, so that a value is a demeaned logit (before any soft cap).
    """
    t = local.trace
    logits = t.logits[-1]
    probabilities = torch.softmax(lens.capped(logits), -1)
    if chosen is None:
        if max_n_logits < 1 or not 0 < desired_logit_prob <= 1:
            raise ValueError(
                "attribute: max_n_logits must be at least 1 and desired_logit_prob in (0, 1], got "
                f"{max_n_logits}, {desired_logit_prob}"
            )
        top = torch.topk(probabilities, min(max_n_logits, probabilities.numel()))
        reached = torch.cumsum(top.values, 0) < desired_logit_prob
        tokens = top.indices[: int(reached.sum()) + 1]
    else:
        tokens = _token_ids(lens, chosen)
    directions = t.W_U[:, tokens] - t.W_U.mean(1, keepdim=True)
    own = t.b_U[tokens] - t.b_U.mean() + t.ln_final.bias_vector(t.embed[0]) @ directions
    return LogitTargets(
        tokens=tokens,
        labels=lens.to_str_tokens(tokens),
        probabilities=probabilities[tokens],
        directions=directions,
        own=own,
        values=logits[tokens] - logits.mean(),
        pos=t.n_pos - 1,
    )


def _token_ids(lens: Lens, chosen: int | str | Sequence[int | str] | Tensor) -> Tensor:
    """Token ids (K) of the logits asked for, each once; a string must be one token."""
    if isinstance(chosen, Tensor):
        chosen = chosen.reshape(-1).tolist()
    elif isinstance(chosen, str) or not isinstance(chosen, Iterable):
        chosen = [chosen]
    ids = [_token_id(lens, target) for target in chosen]
    if not ids:
        raise ValueError(
            "attribute: attribution_targets is empty; give at least one token, or None for the likely ones"
        )
    if min(ids) < 0 or max(ids) >= lens.d_vocab:
        raise ValueError(f"attribute: target tokens must lie in 0..{lens.d_vocab - 1}, got {ids}")
    if len(set(ids)) < len(ids):
        raise ValueError(f"attribute: attribution_targets names a token twice: ids {ids}")
    return torch.tensor(ids, dtype=torch.long, device=lens.device)


def _token_id(lens: Lens, target: Any) -> int:
    if not isinstance(target, str):
        try:
            return operator.index(target)  # also of numpy and of tensors with one element
        except TypeError as error:
            raise ValueError(f"attribute: a target is a token id or a string of one token, got {target!r}") from error
    if getattr(lens.model, "tokenizer", None) is None:
        raise ValueError(f"attribute: this model has no tokenizer to read the target '{target}'; give its token id")
    ids = lens.model.to_tokens(target, prepend_bos=False)[0]
    if ids.numel() != 1:
        raise ValueError(f"attribute: the target '{target}' is {ids.numel()} tokens; a target must be one token")
    return int(ids[0])


def logit_batch(local: LocalModel, logits: LogitTargets) -> Targets:
    k = logits.tokens.shape[0]
    device = logits.tokens.device
    return Targets(
        layer=torch.full((k,), local.n_layers, device=device),
        pos=torch.full((k,), logits.pos, device=device),
        vectors=logits.directions.T.contiguous(),
        own=logits.own,
    )


def feature_batch(local: LocalModel, chosen: Tensor) -> Targets:
    """Targets for features given by their place (B) among all active features, in layout order."""
    layers = sorted(local.acts)
    start = 0
    parts: list[tuple[Tensor, Targets]] = []
    for i in layers:
        acts = local.acts[i]
        here = (chosen >= start) & (chosen < start + acts.nnz)
        at = chosen[here] - start
        start += acts.nnz
        ids = acts.indices[at].long()
        rows = local.sets.encoder_rows(i, ids)
        bias = local.trace.layers[i].read_bias(local.sets.hook_in(i))
        own = local.sets.b_enc(i)[ids] + rows @ bias
        parts.append((here.nonzero()[:, 0], Targets(torch.full_like(at, i), acts.rows()[at], rows, own)))
    order = torch.cat([where for where, _ in parts])
    joined = Targets(
        layer=torch.cat([p.layer for _, p in parts]),
        pos=torch.cat([p.pos for _, p in parts]),
        vectors=torch.cat([p.vectors for _, p in parts]),
        own=torch.cat([p.own for _, p in parts]),
    )
    return joined[torch.argsort(order)]
