"""pullback: train sparse transcoders fast and turn them into circuits at scale."""

from __future__ import annotations

import importlib
from typing import Any

import torch as _torch  # noqa: F401  before _C: both then share one OpenMP runtime

_LAZY = {
    "attribute": "attribution",
    "Graph": "attribution",
    "Scores": "attribution",
    "intervene": "causal",
    "interchange": "causal",
    "Lens": "lens",
    "as_lens": "lens",
    "SparseActivations": "ops",
    "BatchTopK": "transcoders",
    "JumpReLU": "transcoders",
    "ModelReading": "transcoders",
    "ReLU": "transcoders",
    "TopK": "transcoders",
    "Transcoder": "transcoders",
    "TranscoderSet": "transcoders",
    "load_transcoders": "transcoders",
    "TrainConfig": "training",
    "TrainStep": "training",
    "evaluate": "training",
    "train": "training",
}
_ROOMS = ("attribution", "causal", "lens", "ops", "training", "transcoders", "viz", "zoo")

__all__ = [*_LAZY, *_ROOMS]


def __getattr__(name: str) -> Any:
    # Rooms load on first use: a GPU box without transformer_lens can import this, and --help is instant.
    if name in _LAZY:
        return getattr(importlib.import_module(f"pullback.{_LAZY[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"pullback.{name}")
    raise AttributeError(f"module 'pullback' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
