"""Small models with known answers, offline: `load(name)`, `transcoders(name)`, `saes(name)`, `truth(name)`.

exact      a random ReLU model that is its own transcoder: no errors, every identity holds to rounding
planted    a two-hop lookup written by formula: features, edges and their weights are known
tiny-mix   a trained four-layer model of about 300 words, with trained transcoders and autoencoders
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from pullback.transcoders import TranscoderSet

NAMES = ("exact", "planted", "tiny-mix")

__all__ = ["NAMES", "load", "saes", "transcoders", "truth"]


def load(name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> TransformerBridge:
    """A model of the zoo, new at every call. Raises ValueError for an unknown name."""
    return _room(name).load(dtype=dtype, device=device)


def transcoders(name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> TranscoderSet:
    """The transcoders that belong to `load(name)`, new at every call.

    Raises ValueError for an unknown name, FileNotFoundError where shipped files are missing.
    """
    return _room(name).transcoders(dtype=dtype, device=device)


def saes(name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> TranscoderSet:
    """The autoencoders of attention outputs that belong to `load(name)`, new at every call.

    Raises ValueError for a name of the zoo that has none, or that is unknown, FileNotFoundError where shipped files are
    missing.
    """
    room = _room(name)
    if not hasattr(room, "saes"):
        raise ValueError(f"zoo: '{name}' has no autoencoders of attention outputs; tiny-mix has")
    return room.saes(dtype=dtype, device=device)


def truth(name: str) -> Any:
    """What is known of `load(name)` and its transcoders.

    exact: a dict of figures that must come out. planted: `PlantedTruth`. tiny-mix: a dict of its prompts with their
    answers, and of the figures it shipped with. Raises ValueError for an unknown name.
    """
    return _room(name).truth()


def _room(name: str) -> Any:
    if name not in NAMES:
        raise ValueError(f"zoo: there is no model '{name}'; there are {', '.join(NAMES)}")
    return importlib.import_module("pullback.zoo." + {"tiny-mix": "trained"}.get(name, name))
