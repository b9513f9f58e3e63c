"""pullback: train sparse transcoders fast and turn them into circuits at scale."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch as _torch  # noqa: F401  before _C: both then share one OpenMP runtime

if TYPE_CHECKING:
    from pullback import attribution, causal, interpret, lens, ops, training, transcoders, viz, zoo
    from pullback.attribution import (
        DirectionTarget,
        ExpectedAttributions,
        FeatureTarget,
        Graph,
        GraphCollection,
        HeadLoadings,
        Interference,
        LogitDifference,
        LogitTarget,
        QKAttribution,
        Scores,
        VirtualWeights,
        attribute,
        attribute_many,
        attribute_on_devices,
        expected_attributions,
        head_loadings,
        hierarchical,
        interference,
        memory_estimate,
        qk_attribution,
        read_index,
        virtual_weights,
        write_index,
    )
    from pullback.causal import (
        Ablation,
        Margin,
        Supernode,
        Swap,
        ablate,
        agreement,
        edge_scores,
        faithfulness_curves,
        generate,
        interchange,
        intervene,
        node_scores,
        steer,
    )
    from pullback.interpret import FeaturePack, write_feature_pack
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
    "Ablation",
    "BatchTopK",
    "CrossLayerTranscoder",
    "DirectionTarget",
    "ExpectedAttributions",
    "FeaturePack",
    "FeatureTarget",
    "Graph",
    "GraphCollection",
    "HeadLoadings",
    "Interference",
    "JumpReLU",
    "Lens",
    "LogitDifference",
    "LogitTarget",
    "Margin",
    "ModelReading",
    "QKAttribution",
    "ReLU",
    "Scores",
    "SparseActivations",
    "Supernode",
    "Swap",
    "TopK",
    "TrainConfig",
    "TrainStep",
    "Transcoder",
    "TranscoderSet",
    "VirtualWeights",
    "ablate",
    "agreement",
    "as_lens",
    "attribute",
    "attribute_many",
    "attribute_on_devices",
    "attribution",
    "causal",
    "edge_scores",
    "evaluate",
    "expected_attributions",
    "faithfulness_curves",
    "generate",
    "head_loadings",
    "hierarchical",
    "interchange",
    "interference",
    "interpret",
    "intervene",
    "lens",
    "load_transcoders",
    "memory_estimate",
    "node_scores",
    "ops",
    "qk_attribution",
    "read_index",
    "steer",
    "train",
    "training",
    "transcoders",
    "virtual_weights",
    "viz",
    "write_feature_pack",
    "write_index",
    "zoo",
]

_ROOMS = ("attribution", "causal", "interpret", "lens", "ops", "training", "transcoders", "viz", "zoo")
_FROM = {
    "attribution": (
        "DirectionTarget",
        "ExpectedAttributions",
        "FeatureTarget",
        "Graph",
        "GraphCollection",
        "HeadLoadings",
        "Interference",
        "LogitDifference",
        "LogitTarget",
        "QKAttribution",
        "Scores",
        "VirtualWeights",
        "attribute",
        "attribute_many",
        "attribute_on_devices",
        "expected_attributions",
        "head_loadings",
        "hierarchical",
        "interference",
        "memory_estimate",
        "qk_attribution",
        "read_index",
        "virtual_weights",
        "write_index",
    ),
    "interpret": ("FeaturePack", "write_feature_pack"),
    "causal": (
        "Ablation",
        "Margin",
        "Supernode",
        "Swap",
        "ablate",
        "agreement",
        "edge_scores",
        "faithfulness_curves",
        "generate",
        "interchange",
        "intervene",
        "node_scores",
        "steer",
    ),
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
