"""Graphs as networkx graphs and as Arrow tables. Neither library is needed for anything else."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.graph import Graph
from pullback.attribution.io import feeds_forward, named_twice

if TYPE_CHECKING:
    import networkx
    import pyarrow

META = b"pullback"


def to_networkx(graph: Graph) -> networkx.DiGraph:
    nx = _needed("networkx", "to_networkx")
    nodes, edges = graph.to_pandas()
    made = nx.DiGraph(**graph.meta)
    made.add_nodes_from((row.pop("id"), row) for row in nodes.to_dict("records"))
    made.add_weighted_edges_from(edges.itertuples(index=False, name=None))
    return made


def to_arrow(graph: Graph) -> tuple[pyarrow.Table, pyarrow.Table]:
    pa = _needed("pyarrow", "to_arrow")
    nodes, edges = graph.to_pandas()
    nodes["dropped"] = graph.dropped.numpy()
    for name, column in (("cumulative", graph.cumulative), ("target_weight", graph.given_weights)):
        if column is not None:
            nodes[name] = column.numpy()
    table = pa.Table.from_pandas(nodes, preserve_index=False)
    meta = {**(table.schema.metadata or {}), META: json.dumps(graph.meta).encode()}
    return table.replace_schema_metadata(meta), pa.Table.from_pandas(edges, preserve_index=False)


def from_arrow(nodes: pyarrow.Table, edges: pyarrow.Table) -> Graph:
    pa = _needed("pyarrow", "from_arrow")
    lacking = {"id", "kind", "layer", "pos", "feature", "activation", "preactivation", "dropped"} - set(
        nodes.column_names
    )
    if lacking or META not in (nodes.schema.metadata or {}):
        missing = ", ".join(sorted(lacking)) or "the metadata that to_arrow gives it"
        raise ValueError(f"from_arrow: the table of nodes lacks {missing}")
    kinds = np.array([k.KINDS.index(kind) for kind in nodes["kind"].to_pylist()], dtype=np.int8)
    order = np.argsort(_places(kinds, nodes), kind="stable")  # as `Nodes` has them, however the rows were sorted
    nodes = nodes.take(pa.array(order))

    def column(name: str) -> Tensor:
        return torch.from_numpy(nodes[name].to_numpy().copy())

    ids = nodes["id"].combine_chunks()
    kind, feature = torch.from_numpy(kinds[order]), column("feature")
    own = kind == k.OWN
    targets = [name.removeprefix("own_") for name in ids.filter(pa.array(own.numpy())).to_pylist()]
    feature[own] = _numbers(pa.array(targets, type=ids.type), ids)
    rows, sources = (_numbers(edges[end].combine_chunks(), ids) for end in ("target", "source"))
    by_row = torch.argsort(rows * len(ids) + sources)
    counts = torch.bincount(rows, minlength=len(ids))
    graph = Graph(
        nodes=k.Nodes(kind, column("layer"), column("pos"), feature, column("activation"), column("preactivation")),
        indptr=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        sources=sources[by_row].int(),
        weights=torch.from_numpy(edges["weight"].to_numpy().copy())[by_row],
        dropped=column("dropped"),
        cumulative=column("cumulative") if "cumulative" in nodes.column_names else None,
        given_weights=column("target_weight") if "target_weight" in nodes.column_names else None,
        meta=json.loads(nodes.schema.metadata[META]),
    )
    if not feeds_forward(graph):
        raise ValueError("from_arrow: some edges lead backwards, or into nodes that are neither features nor logits")
    if twice := named_twice(graph):
        raise ValueError(f"from_arrow: the edge from {twice[0]} to {twice[1]} is there more than once")
    return graph


def _places(kinds: np.ndarray, nodes: pyarrow.Table) -> np.ndarray:
    """Kinds in the order of a table, with all that is explained besides active features in one place."""
    explained = np.isin(kinds, (k.LOGIT, k.DIRECTION))
    if "target_weight" in nodes.column_names:
        inactive = nodes["activation"].to_numpy() == 0
        explained |= np.isin(kinds, k.FEATURES) & inactive & (nodes["target_weight"].to_numpy() > 0)
    return np.where(explained, len(k.IN_ORDER), np.argsort(k.IN_ORDER)[kinds])


def _numbers(names: Any, ids: Any) -> Tensor:
    """The row of each named node. Raises ValueError for a name that no node has."""
    compute = importlib.import_module("pyarrow.compute")
    found = compute.index_in(names, value_set=ids)
    if found.null_count:
        name = names.filter(compute.is_null(found))[0].as_py()
        raise ValueError(f"from_arrow: no node is called '{name}'; drop the edges and own leaves of nodes you drop")
    return torch.from_numpy(found.to_numpy().copy()).long()


def _needed(package: str, caller: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"Graph.{caller} needs {package}: pip install {package}") from error
