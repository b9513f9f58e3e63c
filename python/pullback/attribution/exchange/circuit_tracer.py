"""circuit-tracer's graph files: `torch.save` of a dict with two of its classes in it, read and written without them.

Reading runs no code of the file: stand-ins take the place of the two classes, and anything else is refused. Writing
names the classes without importing them, so `circuit_tracer.Graph.from_pt` finds its own.
"""

from __future__ import annotations

import pickle
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pullback._util.atomic import atomic_write
from pullback.attribution.exchange.dense import DenseGraph, dense, from_dense
from pullback.attribution.graph import Graph
from pullback.attribution.io import feeds_forward
from pullback.transcoders.formats.files import read_pickle


class LogitTarget(NamedTuple):
    """Stands for circuit_tracer.attribution.targets.LogitTarget."""

    token_str: str
    vocab_idx: int


class UnifiedConfig:
    """Stands for circuit_tracer.utils.tl_nnsight_mapping.UnifiedConfig."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


NAMES = {
    LogitTarget: "circuit_tracer.attribution.targets.LogitTarget",
    UnifiedConfig: "circuit_tracer.utils.tl_nnsight_mapping.UnifiedConfig",
}
_of_scalar = np.float64(0).__reduce__()[0]
# Files of its first versions hold the configuration of TransformerLens, from one of two places, with a number of numpy.
READ_AS = [
    *NAMES.items(),
    (UnifiedConfig, "transformer_lens.HookedTransformerConfig.HookedTransformerConfig"),
    (UnifiedConfig, "transformer_lens.config.HookedTransformerConfig.HookedTransformerConfig"),
    (_of_scalar, "numpy._core.multiarray.scalar"),
    (_of_scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
    torch.device,
]
SIZES = ("d_model", "d_head", "n_heads", "d_mlp", "d_vocab")
TENSORS = (
    "input_tokens",
    "adjacency_matrix",
    "active_features",
    "selected_features",
    "activation_values",
    "logit_probabilities",
)


_InPython: Any = pickle._Pickler  # the one in C cannot be told another name for a class


class _Pickler(_InPython):
    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj not in NAMES:
            return super().save_global(obj, name)
        module, _, qualified = NAMES[obj].rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{qualified}\n".encode())
        return self.memoize(obj)


def to_circuit_tracer(graph: Graph, path: str | PathLike[str], model: Any, scan: str | None) -> None:
    d = dense(graph)
    labels = graph.meta["logit_labels"]
    content = {
        "input_string": graph.meta["prompt"],
        "input_tokens": d.tokens,
        "adjacency_matrix": d.adjacency,
        "active_features": d.features,
        "selected_features": torch.arange(len(d.features)),
        "activation_values": d.activations,
        "logit_targets": [LogitTarget(*pair) for pair in zip(labels, d.logit_tokens.tolist(), strict=True)],
        "logit_probabilities": d.logit_probabilities,
        "cfg": _config(graph, d, model),
        "scan": graph.meta["model_name"] if scan is None else scan,
    }
    content["vocab_size"] = content["cfg"].d_vocab
    with atomic_write(path) as file:
        _save(content, file)


def _save(content: dict[str, Any], file: IO[bytes]) -> None:
    torch.save(content, file, pickle_module=SimpleNamespace(__name__="pickle", Pickler=_Pickler))


def _config(graph: Graph, d: DenseGraph, model: Any) -> UnifiedConfig:
    """What is known of the model. Without one to ask, its sizes are 0 and its vocabulary is as large as it must be."""
    cfg = getattr(getattr(model, "model", model), "cfg", None)  # of a Lens, its model's
    sizes = {name: int(getattr(cfg, name, 0) or 0) for name in SIZES}
    least = 1 + int(torch.cat([d.tokens, d.logit_tokens]).max())
    return UnifiedConfig(
        **sizes | {"d_vocab": max(sizes["d_vocab"], least)},
        n_layers=d.n_layers,
        tokenizer_name=str(getattr(cfg, "tokenizer_name", None) or graph.meta["model_name"]),
        model_name=graph.meta["model_name"],
        original_architecture=str(getattr(cfg, "original_architecture", None) or ""),
        n_key_value_heads=getattr(cfg, "n_key_value_heads", None),
        dtype=None,
    )


def from_circuit_tracer(path: str | PathLike[str], tokenizer: Any) -> Graph:
    path = Path(path)
    content = read_pickle(path, READ_AS)
    _validate(content, path)
    targets = content.get("logit_targets", content.get("logit_tokens"))
    if isinstance(targets, Tensor):  # of its first versions too
        targets = [("", int(token)) for token in targets]
    config = vars(content["cfg"])
    given = DenseGraph(
        adjacency=content["adjacency_matrix"],
        features=content["active_features"][content["selected_features"]].long(),
        activations=content["activation_values"][content["selected_features"]],
        tokens=content["input_tokens"].long(),
        logit_tokens=torch.tensor([token for _, token in targets]),
        logit_probabilities=content["logit_probabilities"],
        n_layers=int(config["n_layers"]),
    )
    expected = given.spans["logits"].stop
    if given.adjacency.shape != (expected, expected):
        raise ValueError(
            f"{path} contradicts itself: {len(given.features)} features, {given.n_layers} layers, {len(given.tokens)} "
            f"tokens and {len(targets)} logits make {expected} nodes, but its matrix is {list(given.adjacency.shape)}"
        )
    meta = {
        "prompt": content["input_string"],
        # The file has ids only.
        "str_tokens": [str(t) if tokenizer is None else tokenizer.decode([t]) for t in given.tokens.tolist()],
        "logit_labels": [label or str(token) for label, token in targets],
        "model_name": str(config.get("model_name") or "unknown"),
        "scan": content.get("scan", content.get("scan_name")),
        "dtype": str(given.adjacency.dtype).removeprefix("torch."),
    }
    graph = from_dense(given, meta)
    if not feeds_forward(graph):
        raise ValueError(f"{path} is damaged: some of its edges lead backwards")
    return graph


def _validate(content: Any, path: Path) -> None:
    keys = set(content) if isinstance(content, dict) else set()
    if "logit_tokens" in keys:
        keys.add("logit_targets")
    missing = {*TENSORS, "input_string", "logit_targets", "cfg"} - keys
    if missing or not all(isinstance(content[name], Tensor) for name in TENSORS):
        raise ValueError(f"{path} is no graph of circuit-tracer: it lacks {', '.join(sorted(missing)) or 'tensors'}")
    if not bool(torch.isfinite(content["adjacency_matrix"]).all()):
        raise ValueError(f"{path} is damaged: some of its edges are NaN or infinite")
