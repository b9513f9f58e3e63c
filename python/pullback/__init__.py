"""pullback: train sparse transcoders fast and turn them into circuits at scale."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch as _torch  # noqa: F401  before _C: both then share one OpenMP runtime

if TYPE_CHECKING:
    from pullback import attribution, causal, lens, ops, training, transcoders, viz, zoo
    from pullback.attribution import (
        DirectionTarget,
        ExpectedAttributions,
        FeatureTarget,
        Graph,
        HeadLoadings,
        Interference,
        LogitDifference,
        LogitTarget,
        QKAttribution,
        Scores,
        VirtualWeights,
        attribute,
        expected_attributions,
        head_loadings,
        interference,
        memory_estimate,
        qk_attribution,
        virtual_weights,
    )
    from pullback.causal import Swap, interchange, intervene
    from pullback.lens import Lens, as_lens
    from pullback.ops import SparseActivations
    from pullback.training import TrainConfig, TrainStep, evaluate, train
    from pullback.transcoders import (
        BatchTopK,
        CrossLayerTranscoder,
        JumpReLU,
        ModelReading,
        ReLU,
        TopK,
        Transcoder,
        TranscoderSet,
        load_transcoders,
    )

__all__ = [
    "BatchTopK",
    "CrossLayerTranscoder",
    "DirectionTarget",
    "ExpectedAttributions",
    "FeatureTarget",
    "Graph",
    "HeadLoadings",
    "Interference",
    "JumpReLU",
    "Lens",
    "LogitDifference",
    "LogitTarget",
    "ModelReading",
    "QKAttribution",
    "ReLU",
    "Scores",
    "SparseActivations",
    "Swap",
    "TopK",
    "TrainConfig",
    "TrainStep",
    "Transcoder",
    "TranscoderSet",
    "VirtualWeights",
    "as_lens",
    "attribute",
    "attribution",
    "causal",
    "evaluate",
    "expected_attributions",
    "head_loadings",
    "interchange",
    "interference",
    "intervene",
    "lens",
    "load_transcoders",
    "memory_estimate",
    "ops",
    "qk_attribution",
    "train",
    "training",
    "transcoders",
    "virtual_weights",
    "viz",
    "zoo",
]

_ROOMS = ("attribution", "causal", "lens", "ops", "training", "transcoders", "viz", "zoo")
_FROM = {
    "attribution": (
        "DirectionTarget",
        "ExpectedAttributions",
        "FeatureTarget",
        "Graph",
        "HeadLoadings",
        "Interference",
        "LogitDifference",
        "LogitTarget",
        "QKAttribution",
        "Scores",
        "VirtualWeights",
        "attribute",
        "memory_estimate",
        "expected_attributions",
        "head_loadings",
        "interference",
        "qk_attribution",
        "virtual_weights",
    ),
    "causal": ("Swap", "interchange", "intervene"),
    "lens": ("Lens", "as_lens"),
    "ops": ("SparseActivations",),
    "training": ("TrainConfig", "TrainStep", "evaluate", "train"),
    "transcoders": (
        "BatchTopK",
        "CrossLayerTranscoder",
        "JumpReLU",
        "ModelReading",
        "ReLU",
        "TopK",
        "Transcoder",
        "TranscoderSet",
        "load_transcoders",
    ),
}
_HOME = {name: room for room, names in _FROM.items() for name in names}


def __getattr__(name: str) -> Any:
    # Rooms load on first use: a GPU box without transformer_lens can import this, and --help is instant.
    if name in _ROOMS:
        return importlib.import_module(f"pullback.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"pullback.{_HOME[name]}"), name)
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("pullback")
    raise AttributeError(f"module 'pullback' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
