"""Graphs on disk: one safetensors file, plain tensors and a JSON header, nothing to unpickle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from os import PathLike

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pullback._util.atomic import atomic_write
from pullback.attribution.graph import Graph
from pullback.attribution.nodes import DIRECTION, FEATURES, LOGIT, NODE_FIELDS, Nodes

FORMAT = "pullback-graph"
VERSION = 2
EDGE_FIELDS = ("indptr", "weights", "dropped")
RUN_FIELDS = ("run_first", "run_length")
OPTIONAL_FIELDS = ("cumulative", "given_weights")
DTYPES = {torch.int8: "I8", torch.int32: "I32", torch.int64: "I64", torch.float32: "F32", torch.float64: "F64"}


def save(graph: Graph, path: str | PathLike[str], *, one_of_many: bool = False) -> None:
    """Write `path`; if interrupted or out of space, a file there before survives. Of many files, the caller does
    `sync_directory` in the end, and none stays in the system's memory (`atomic_path`)."""
    tensors = {f"nodes.{f}": getattr(graph.nodes, f).contiguous() for f in NODE_FIELDS}
    tensors |= {f: getattr(graph, f).contiguous() for f in EDGE_FIELDS}
    # The runs of sources say the same as sources in less.
    runs = graph.runs
    tensors |= {"sources": graph.sources.contiguous()} if runs is None else dict(zip(RUN_FIELDS, runs, strict=True))
    tensors |= {f: t.contiguous() for f in OPTIONAL_FIELDS if (t := getattr(graph, f)) is not None}
    header = {"format": FORMAT, "version": str(VERSION), "meta": json.dumps(graph.meta)}
    with atomic_write(path, one_of_many=one_of_many) as file:
        file.writelines(_content(tensors, header))


def _sources(tensors: Mapping[str, Tensor], path: str) -> Tensor:
    """As they are, or from their runs."""
    if "sources" in tensors:
        return tensors["sources"]
    first, length = (tensors[f] for f in RUN_FIELDS)
    n_edges = len(tensors["weights"])
    if first.shape != length.shape or bool((length < 1).any()) or int(length.sum()) != n_edges:
        raise ValueError(f"{path} contradicts itself: its runs of sources are not those of {n_edges} edges")
    begin = length.cumsum(0) - length
    counted = torch.int32 if n_edges < 2**31 else torch.int64
    shift = torch.repeat_interleave((first - begin).to(counted), length)
    return shift.add_(torch.arange(n_edges, dtype=counted)).int()


def _content(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """A safetensors file from the tensors' own memory. The library's own writer copies all of it twice, and puts the
    metadata in an order that differs from run to run."""
    widest_first = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that each is aligned
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in widest_first:
        t = tensors[name]
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [end, end := end + t.nbytes]}
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    yield len(written).to_bytes(8, "little")
    yield written
    for name in widest_first:
        yield tensors[name].numpy().data


def load(path: str | PathLike[str]) -> Graph:
    """Raises FileNotFoundError, or ValueError for a file that is no graph, is damaged, or contradicts itself."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"no graph file at {os.fspath(path)}")
    if os.path.isdir(path):
        raise ValueError(f"{os.fspath(path)} is a folder; name a file in it, or read all with GraphCollection")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} is no safetensors file, or is cut short: {error}") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"{os.fspath(path)} holds no pullback graph (its header says {header.get('format')!r})")
    if int(header["version"]) > VERSION:
        raise ValueError(
            f"{os.fspath(path)} is graph format {header['version']}; this pullback reads up to {VERSION}: upgrade it"
        )
    wanted = {f"nodes.{f}" for f in NODE_FIELDS} | set(EDGE_FIELDS)
    wanted |= {"sources"} if "sources" in tensors else set(RUN_FIELDS)
    if missing := sorted(wanted - set(tensors)):
        raise ValueError(f"{os.fspath(path)} lacks {', '.join(missing)}")
    graph = Graph(
        nodes=Nodes(*(tensors[f"nodes.{f}"] for f in NODE_FIELDS)),
        sources=_sources(tensors, os.fspath(path)),
        meta=json.loads(header["meta"]),
        **{f: tensors.get(f) for f in OPTIONAL_FIELDS},
        **{f: tensors[f] for f in EDGE_FIELDS},
    )
    _validate(graph, os.fspath(path))
    return graph


def _validate(graph: Graph, path: str) -> None:
    n, e = graph.n_nodes, graph.n_edges
    lengths = {f: getattr(graph.nodes, f).shape for f in NODE_FIELDS}
    fits = (
        all(shape == (n,) for shape in lengths.values())
        and graph.indptr.shape == (n + 1,)
        and graph.weights.shape == (e,)
        and graph.dropped.shape == (n,)
        and all(t.shape == (n,) for f in OPTIONAL_FIELDS if (t := getattr(graph, f)) is not None)
        and int(graph.indptr[0]) == 0
        and int(graph.indptr[-1]) == e
        and bool((graph.indptr.diff() >= 0).all())
        and (e == 0 or (int(graph.sources.min()) >= 0 and int(graph.sources.max()) < n))
        and graph.weights.dtype in (torch.float32, torch.float64)
    )
    if not fits or not feeds_forward(graph):
        raise ValueError(f"{path} contradicts itself: its edges do not fit its {n} nodes")
    if not bool(torch.isfinite(graph.weights).all()):
        raise ValueError(f"{path} is damaged: some of its edges are NaN or infinite")


def feeds_forward(graph: Graph) -> bool:
    """Whether only features and logits are targets, and every feature feeds what is further on only: no cycles, so that
    influence can be summed up."""
    depth, counts = graph.nodes.depth, graph.indptr.diff()
    feature, explained = graph.of_kind(*FEATURES), graph.of_kind(LOGIT, DIRECTION)
    if bool((counts[~(feature | explained)] > 0).any()):
        return False
    ends = torch.iinfo(depth.dtype)  # leaves feed all, what is explained feeds nothing
    needs = torch.where(feature, depth, ends.min).masked_fill(explained, ends.max)
    return bool((needs.index_select(0, graph.sources) < torch.repeat_interleave(depth, counts)).all())


def named_twice(graph: Graph) -> tuple[str, str] | None:
    """(source, target) of an edge that there is more than once, where the sources of each row ascend."""
    rows = graph.rows()
    again = ((rows[1:] == rows[:-1]) & (graph.sources[1:] == graph.sources[:-1])).nonzero()[:, 0]
    if not len(again):
        return None
    ids = graph.node_ids()
    return ids[int(graph.sources[again[0]])], ids[int(rows[again[0]])]
