"""Gradients of a measure at sites of a run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pullback.lens import Lens
from pullback.lens import record as rec

Key = TypeVar("Key", bound=Hashable)


def output_gradients(
    lens: Lens,
    tokens: Tensor,
    outputs: Mapping[Key, str],
    measure: Callable[[Tensor], Tensor],
    *,
    edits: Sequence[tuple[str, rec.Edit]] = (),
    sites: Sequence[str] = (),
) -> tuple[Tensor, dict[Key, Tensor], dict[str, Tensor]]:
    """Of the sum of measure(logits (B, T, V)) -> (B): the values (B), gradients at the sites of `outputs`, and tensors
    at `sites`, of one pass over tokens (B, T) under edits."""
    leaves: dict[Key, Tensor] = {}

    def leaf(key: Key) -> rec.Edit:
        def edit(y: Tensor) -> Tensor:
            # A zero added to the stream: its gradient is the gradient at the output, whatever feeds the output.
            leaves[key] = torch.zeros_like(y, requires_grad=True)
            return y + leaves[key]

        return edit

    with torch.enable_grad():
        logits, seen = rec.record(
            lens.model,
            tokens.to(lens.device),
            list(sites),
            [*lens.exact_edits, *edits, *((site, leaf(key)) for key, site in outputs.items())],
        )
        values = measure(logits)
        gradients = torch.autograd.grad(values.sum(), [leaves[key] for key in outputs])
    return values.detach(), dict(zip(outputs, gradients, strict=True)), {s: t.detach() for s, t in seen.items()}
