"""`GraphCollection`: what many prompts have in common, and where they differ."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from pullback.attribution.collection.keys import Align, Floats, Ints, NodeKeys, feature_influence, must_align, node_keys
from pullback.attribution.collection.mean import mean_graph
from pullback.attribution.collection.similarity import agglomerate, similarity
from pullback.attribution.collection.tally import Tally, summed
from pullback.attribution.graph import Graph
from pullback.attribution.nodes import FEATURES, KINDS

if TYPE_CHECKING:
    import pandas as pd

FEATURE_COLUMNS = ("kind", "layer", "feature")
SOURCE_COLUMNS, TARGET_COLUMNS = (tuple(f"{end}_{name}" for name in FEATURE_COLUMNS) for end in ("source", "target"))


class GraphCollection:
    """Graphs of many prompts of one model, in memory or in files that are read one at a time.

    Args:
        graphs: a folder whose `.safetensors` files are graphs, or an iterable of graphs and paths of such files.

    Raises:
        ValueError: there is none. FileNotFoundError: there is no such folder.
    """

    def __init__(self, graphs: str | os.PathLike[str] | Iterable[Graph | str | os.PathLike[str]]) -> None:
        if isinstance(graphs, str | os.PathLike):
            folder = Path(graphs)
            if not folder.is_dir():
                raise FileNotFoundError(f"GraphCollection: there is no folder {folder}")
            graphs = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))
            if not graphs:
                raise ValueError(f"GraphCollection: {folder} holds no graphs (files that end in .safetensors)")
        self._graphs = [graph if isinstance(graph, Graph) else Path(graph) for graph in graphs]
        if not self._graphs:
            raise ValueError("GraphCollection: no graphs were given")

    # ---- as a sequence --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._graphs)

    def __iter__(self) -> Iterator[Graph]:
        return (graph if isinstance(graph, Graph) else Graph.load(graph) for graph in self._graphs)

    @overload
    def __getitem__(self, which: SupportsIndex) -> Graph: ...
    @overload
    def __getitem__(self, which: slice | Sequence[int] | NDArray[Any]) -> GraphCollection: ...
    def __getitem__(self, which: SupportsIndex | slice | Sequence[int] | NDArray[Any]) -> Graph | GraphCollection:
        """One graph by its number; a collection by a slice, several numbers, or a mask (n) of bool."""
        if isinstance(which, slice):
            return GraphCollection(self._graphs[which])
        several = np.asarray(which)
        if several.ndim == 0:
            graph = self._graphs[operator.index(several.item())]
            return graph if isinstance(graph, Graph) else Graph.load(graph)
        if several.size == 0:
            several = several.astype(bool if several.dtype == bool else int)
        return GraphCollection([self._graphs[i] for i in np.arange(len(self))[several]])

    def __repr__(self) -> str:
        return f"GraphCollection({len(self)} graphs)"

    @cached_property
    def prompts(self) -> list[str]:
        return [graph.meta["prompt"] for graph in self]

    @cached_property
    def _influence(self) -> list[tuple[Ints, Floats]]:
        return [feature_influence(graph) for graph in self]

    # ---- features -------------------------------------------------------------------------------------------------

    def features(self, min_share: float = 0.0) -> pd.DataFrame:
        """Which features recur: kind, layer, feature, prompts (in how many), share (of all), influence (mean over all
        prompts, 0 where a prompt lacks it). The most influential come first.

        `min_share=0` is the union of the prompts' features, `min_share=1` their intersection.
        """
        _must_be_share(min_share)
        keys, sums = _by_key(self._influence)
        found = _features(keys)
        found["prompts"] = sums[:, 0].astype(np.int64)
        found["share"] = sums[:, 0] / len(self)
        found["influence"] = sums[:, 1] / len(self)
        found = found[found["share"] >= min_share]
        order = np.argsort(-np.asarray(found["influence"]), kind="stable")
        return found.iloc[order].reset_index(drop=True)

    def difference(self, other: GraphCollection | Graph) -> pd.DataFrame:
        """Mean influence of each feature here and in `other`: kind, layer, feature, influence, other, difference (here
        less there); the largest differences come first.

        For two prompts (`GraphCollection([a]).difference(b)`), two groups of prompts, or one model's prompts under its
        fine-tuned sibling, explained with the same transcoders: features are told apart by kind, layer and id.
        """
        there = GraphCollection([other]) if isinstance(other, Graph) else other
        sides = [(_by_key(side._influence), len(side)) for side in (self, there)]
        tally = Tally(1, 2)
        for column, ((keys, sums), n) in enumerate(sides):
            values = np.zeros((len(keys), 2))
            values[:, column] = sums[:, 1] / n
            tally.add(keys, values)
        tally.settle()
        found = _features(tally.keys)
        found["influence"], found["other"] = tally.sums.T
        found["difference"] = found["influence"] - found["other"]
        order = found["difference"].abs().sort_values(ascending=False, kind="stable").index
        return found.loc[order].reset_index(drop=True)

    # ---- edges ----------------------------------------------------------------------------------------------------

    def edges(self, min_share: float = 0.0) -> pd.DataFrame:
        """How consistent edges between features are, positions summed: source_kind, source_layer, source_feature, and
        the same of the target, prompts (in how many it is), share (of all prompts), same_sign (share of all prompts in
        which it is, with the sign that is more frequent), mean and std of the weight over the prompts that have it. The
        most consistent, then the heaviest, come first.
        """
        _must_be_share(min_share)
        tally = Tally(2, 4)
        for graph in self:
            keys = node_keys(graph, "fold")
            feature = graph.of_kind(*FEATURES)
            rows, sources = graph.rows(), graph.sources.long()
            between = (feature[rows] & feature[sources]).numpy()
            ends = np.stack([keys[sources.numpy()[between]], keys[rows.numpy()[between]]], 1)
            ends, weight = summed(ends, graph.weights.double().numpy()[between, None])
            tally.add(
                ends, np.concatenate([np.ones_like(weight), (weight > 0).astype(np.float64), weight, weight**2], 1)
            )
        tally.settle()
        found = _features(tally.keys[:, :1], SOURCE_COLUMNS).join(_features(tally.keys[:, 1:], TARGET_COLUMNS))
        n, positive, total, squares = tally.sums.T
        found["prompts"] = n.astype(np.int64)
        found["share"] = n / len(self)
        found["same_sign"] = np.maximum(positive, n - positive) / len(self)
        found["mean"] = total / n
        found["std"] = np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0))
        found = found[found["share"] >= min_share]
        order = np.lexsort([-np.abs(found["mean"]), -found["same_sign"]])
        return found.iloc[order].reset_index(drop=True)

    # ---- all of it ------------------------------------------------------------------------------------------------

    def mean(self, align: Align = "fold", min_share: float = 0.0) -> Graph:
        """The mean graph, in which what a prompt lacks counts as 0; it sums as each of them does.

        Args:
            align: "fold" sums a feature over the positions of a prompt; "end" keeps positions apart, counted from the
                last one: for prompts that share a template.
            min_share: keep the nodes of at least this share of prompts; what others contribute becomes dropped mass. 0
                is the union of all graphs, 1 their intersection.

        Raises:
            ValueError: graphs of models with different numbers of layers, or an unknown `align`.
        """
        must_align(align)
        _must_be_share(min_share)
        return mean_graph(self, align, min_share)

    # ---- groups of prompts ----------------------------------------------------------------------------------------

    def similarity(self, measure: str = "jaccard") -> Floats:
        """How alike the prompts' circuits are, (n, n) in [0, 1]: weighted Jaccard index, or "cosine", of the influences
        of their features, positions summed."""
        return similarity(self._influence, measure)

    def cluster(self, n_clusters: int, measure: str = "jaccard", linkage: str = "average") -> Ints:
        """Labels (n) of `n_clusters` groups of prompts with like circuits, by agglomeration: "average", "complete" or
        "single" linkage of 1 - similarity; `collection[labels == 0]` is the first group."""
        return agglomerate(1 - self.similarity(measure), n_clusters, linkage)


def _must_be_share(min_share: float) -> None:
    if not 0 <= min_share <= 1:
        raise ValueError(f"collection: min_share must lie in [0, 1], got {min_share}")


def _by_key(vectors: list[tuple[Ints, Floats]]) -> tuple[Ints, Floats]:
    """Different keys (n, 1) of sparse vectors; in how many of them each is, and the sum of its values, (n, 2)."""
    tally = Tally(1, 2)
    for keys, values in vectors:
        tally.add(keys[:, None], np.stack([np.ones_like(values), values], 1))
    tally.settle()
    return tally.keys, tally.sums


def _features(keys: Ints, columns: tuple[str, ...] = FEATURE_COLUMNS) -> pd.DataFrame:
    import pandas as pd

    of = NodeKeys.unpacked(keys[:, 0])
    kinds = [KINDS[kind] for kind in of.kind.tolist()]
    return pd.DataFrame(dict(zip(columns, (kinds, of.layer, of.id), strict=True)))
