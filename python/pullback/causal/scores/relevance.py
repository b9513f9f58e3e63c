"""The rules of relevance propagation as edits of a forward pass: same values, other gradients (RelP, METHODS 5.7)."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.lens import Lens
from pullback.lens import record as rec


def relevance_edits(lens: Lens) -> list[tuple[str, rec.Edit]]:
    """Attention patterns and norm scales are constants; act(x) is x times the constant act(x) / x; and of a gated
    product each factor passes on half.

    Raises ValueError for a model whose MLPs show no pre-activations.
    """
    names = rec.hook_names(lens.model)
    edits: list[tuple[str, rec.Edit]] = [
        (name, lambda s: s.detach().clone()) for name, _ in rec.exact_norms(lens.model)
    ]
    for i in range(lens.n_layers):
        edits.append((f"blocks.{i}.attn.hook_pattern", torch.Tensor.detach))
        factors = [f"blocks.{i}.mlp.{hook}" for hook in ("hook_pre", *(["hook_pre_linear"] if lens.gated else []))]
        if missing := [site for site in (*factors, f"blocks.{i}.mlp.hook_post") if site not in names]:
            raise ValueError(
                f"relp: {lens.model_name} has no hook '{missing[0]}', where its activation function would be replaced; "
                "use eap, or open it as a TransformerBridge"
            )
        edits += _linearised(factors, f"blocks.{i}.mlp.hook_post")
    return edits


def _linearised(factors: list[str], post: str) -> list[tuple[str, rec.Edit]]:
    """What the MLP has between its matrices, as a sum over factors of constant * factor / number of factors."""
    seen: list[Tensor] = []

    def edit(y: Tensor) -> Tensor:
        shares = [x * torch.where(x == 0, 0, y / torch.where(x == 0, 1, x)).detach() / len(seen) for x in seen]
        seen.clear()
        return torch.stack(shares).sum(0)

    return [*((site, lambda x: seen.append(x)) for site in factors), (post, edit)]
