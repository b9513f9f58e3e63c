"""The rules of relevance propagation as edits of a forward pass: same values, other gradients (RelP, METHODS 5.7)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pullback.attribution.local import LocalModel
from pullback.causal.margin import Margin
from pullback.lens import Lens
from pullback.lens import record as rec
from pullback.lens.freeze import must_hold


def relevance_edits(lens: Lens) -> list[tuple[str, rec.Edit]]:
    """Attention patterns and norm scales are constants; act(x) is x times the constant act(x) / x; and of a gated
    product each factor passes on half.

    Raises ValueError for a model whose MLPs show no pre-activations.
    """
    names = rec.hook_names(lens.model)
    edits = rec.detached_norms(lens.model)
    for i in range(lens.n_layers):
        edits.append((f"blocks.{i}.attn.hook_pattern", torch.Tensor.detach))
        factors = [f"blocks.{i}.mlp.{hook}" for hook in ("hook_pre", *(["hook_pre_linear"] if lens.gated else []))]
        if missing := [site for site in (*factors, f"blocks.{i}.mlp.hook_post") if site not in names]:
            raise ValueError(
                f"relp: {lens.model_name} has no hook '{missing[0]}', where its activation function would be replaced "
                "(mixtures of experts have none; a HookedTransformer may, opened as a TransformerBridge); use eap"
            )
        edits += _linearised(factors, f"blocks.{i}.mlp.hook_post")
    return edits


def relevance_margin(lens: Lens, margin: Margin) -> Callable[[Tensor], Tensor]:
    """The margin of logits whose soft cap, an activation function too, is linear at what it is."""
    if lens.logit_soft_cap is None:
        return margin

    def measure(logits: Tensor) -> Tensor:
        before = lens.uncapped(logits)
        return margin(before * torch.where(before == 0, 1, logits / torch.where(before == 0, 1, before)).detach())

    return measure


def must_act(lens: Lens, local: LocalModel) -> None:
    """Raises ValueError where what is written to patterns, norm scales or behind an activation function does not reach
    the model's computation: gradients would be the model's own."""
    must_hold(lens, local.trace, "all")
    outputs = [f"blocks.{i}.hook_mlp_out" for i in range(lens.n_layers)]
    none = [(f"blocks.{i}.mlp.hook_post", torch.zeros_like) for i in range(lens.n_layers)]
    _, seen = lens.record(local.trace.tokens[None], outputs, none)
    for i, site in enumerate(outputs):
        if bool((seen[site] != seen[site][:, :1]).any()):  # biases alone are the same at every position
            raise ValueError(
                f"relp: edits at blocks.{i}.mlp.hook_post do not reach the output of that MLP of {lens.model_name}, so "
                "its activation function cannot be replaced; use eap"
            )


def _linearised(factors: list[str], post: str) -> list[tuple[str, rec.Edit]]:
    """What the MLP has between its matrices, as a sum over factors of constant * factor / number of factors."""
    seen: list[Tensor] = []

    def edit(y: Tensor) -> Tensor:
        shares = [x * torch.where(x == 0, 0, y / torch.where(x == 0, 1, x)).detach() / len(seen) for x in seen]
        seen.clear()
        return torch.stack(shares).sum(0)

    return [*((site, lambda x: seen.append(x)) for site in factors), (post, edit)]
