"""Gradients of a measure at the outputs that features write to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pullback.lens import Lens
from pullback.lens import record as rec


def output_gradients(
    lens: Lens,
    tokens: Tensor,
    outputs: Mapping[int, str],
    measure: Callable[[Tensor], Tensor],
    *,
    edits: Sequence[tuple[str, rec.Edit]] = (),
    sites: Sequence[str] = (),
) -> tuple[Tensor, dict[int, Tensor], dict[str, Tensor]]:
    """Of the sum of measure(logits (B, T, V)) -> (B): the values (B), gradients at output sites {layer: (B, T, d)}, and
    tensors at `sites`, of one pass over tokens (B, T) under edits."""
    leaves: dict[int, Tensor] = {}

    def leaf(layer: int) -> rec.Edit:
        def edit(y: Tensor) -> Tensor:
            # A zero added to the stream: its gradient is the gradient at the output, whatever feeds the output.
            leaves[layer] = torch.zeros_like(y, requires_grad=True)
            return y + leaves[layer]

        return edit

    with torch.enable_grad():
        logits, seen = rec.record(
            lens.model,
            tokens.to(lens.device),
            list(sites),
            [*lens.exact_edits, *edits, *((site, leaf(layer)) for layer, site in outputs.items())],
        )
        values = measure(logits)
        gradients = torch.autograd.grad(values.sum(), [leaves[layer] for layer in outputs])
    return values.detach(), dict(zip(outputs, gradients, strict=True)), {s: t.detach() for s, t in seen.items()}
