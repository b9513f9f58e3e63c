"""tiny-mix under the names that the zoo calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pullback.zoo.tinymix import load, load_figures

if TYPE_CHECKING:
    from pullback.transcoders import TranscoderSet

__all__ = ["load", "saes", "transcoders", "truth"]


def transcoders(*, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> TranscoderSet:
    """The shipped set. Raises FileNotFoundError where the package has none."""
    from pullback.zoo.tinymix.transcoders import load_transcoders

    return load_transcoders().to(dtype=dtype, device=device)


def saes(*, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> TranscoderSet:
    """The shipped autoencoders of attention outputs. Raises FileNotFoundError where the package has none."""
    from pullback.zoo.tinymix.saes import load_saes

    return load_saes().to(dtype=dtype, device=device)


def truth() -> dict[str, Any]:
    """two_hop: its 48 two-hop prompts with city, state and capital. figures: what the shipped files measured."""
    from pullback.zoo.tinymix.tasks import two_hop_prompts

    return {"two_hop": two_hop_prompts(), "figures": load_figures()}
