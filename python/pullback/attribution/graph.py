"""`Graph`: nodes, signed edges in CSR, and what one asks of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pullback.attribution import influence as inf
from pullback.attribution.names import node_ids, places_of
from pullback.attribution.nodes import DIRECTION, FEATURE, FEATURES, KINDS, LOGIT, OWN, Nodes
from pullback.ops.edges import RowSums, Runs, csr_runs

if TYPE_CHECKING:
    import networkx
    import pandas as pd
    import pyarrow

    from pullback.attribution.effects import Effects
    from pullback.attribution.exchange.view import GraphView


LABELLED = {LOGIT: "logit_labels", DIRECTION: "direction_labels"}


class Scores(NamedTuple):
    """How much of the answer the features carry (METHODS 5.1; circuit-tracer's definitions)."""

    replacement: float
    """Influence of tokens against tokens and errors."""
    completeness: float
    """Influence-weighted share of each node's input that does not come from errors."""


@dataclass(frozen=True, eq=False)  # tensors have no single truth value: a graph equals itself only
class Graph:
    """An attribution graph of one prompt.

    Row t of the CSR (indptr, sources, weights) holds the edges into node t; weight = contribution of the source to the
    target's pre-activation (a logit's: to the demeaned logit). `dropped` (n_nodes) is the signed mass that a node
    limit, a rule for edges, zeroed positions or pruning took away, so every target's edges and dropped mass sum to its
    pre-activation.
    """

    nodes: Nodes
    indptr: Tensor  # (n_nodes + 1) int64
    sources: Tensor  # (n_edges) int32
    weights: Tensor  # (n_edges)
    dropped: Tensor  # (n_nodes)
    cumulative: Tensor | None = None  # (n_nodes), see `cumulative_influence`; kept by prune from the whole graph
    given_weights: Tensor | None = None  # (n_nodes), see `target_weights`
    meta: dict[str, Any] = field(default_factory=dict)
    """prompt, tokens, str_tokens, model_name, n_layers, logit_labels and direction_labels (of these nodes, in order),
    hook_in, dtype; of a pruned graph, the scores of the whole one."""

    # ---- shape ----------------------------------------------------------------------------------------------------

    @property
    def n_nodes(self) -> int:
        return len(self.nodes)

    @property
    def n_edges(self) -> int:
        return self.sources.shape[0]

    def __repr__(self) -> str:
        return f"Graph({self.n_nodes} nodes, {self.n_edges} edges, prompt={self.meta.get('prompt')!r})"

    def rows(self) -> Tensor:
        """Target node of each edge, (n_edges) int64."""
        return torch.repeat_interleave(torch.arange(self.n_nodes), self.indptr.diff())

    def of_kind(self, *kinds: int) -> Tensor:
        """Boolean mask over nodes."""
        asked = sum(1 << kind for kind in set(kinds))
        return torch.bitwise_and(self._kind_bits, asked) != 0

    @cached_property
    def _kind_bits(self) -> Tensor:
        return torch.bitwise_left_shift(1, self.nodes.kind.int())

    @property
    def target_weights(self) -> Tensor:
        """What each explained node weighs in influence, 0 elsewhere, (n_nodes): of a logit its probability, of another
        target 1, where no other weight was given."""
        if self.given_weights is not None:
            return self.given_weights
        return torch.where(self.of_kind(LOGIT), self.nodes.activation, torch.zeros_like(self.nodes.activation))

    @property
    def explained(self) -> Tensor:
        """Mask of the nodes that this graph explains, (n_nodes)."""
        return self.of_kind(LOGIT, DIRECTION) | (self.target_weights > 0)

    def node_ids(self) -> list[str]:
        """Names of nodes, as in the graph JSON (FORMATS.md a)."""
        return node_ids(self.nodes)

    @cached_property
    def runs(self) -> Runs | None:
        """Of successive sources: targets of a whole graph read all that lies below them, so a few runs say it. None
        where sources are scattered."""
        return csr_runs(self.sources.contiguous())

    @cached_property
    def row_sums(self) -> RowSums:
        """What the edges into each node come to: their weights, sizes, and the sizes of those from nodes that scores
        know, and from errors."""
        return inf.row_sums(self)

    def prompt_tokens(self) -> list[int]:
        """Ids of the prompt's tokens. Raises ValueError for a mean of several prompts, which is of none of them."""
        tokens = self.meta["tokens"]
        if any(token < 0 for token in tokens):
            raise ValueError(
                f"graph: the {self.meta.get('prompt')} is of no prompt that could be run; take the graph of one"
            )
        return tokens

    # ---- questions ------------------------------------------------------------------------------------------------

    def check(self) -> float:
        """Largest |preactivation - sum of edges - dropped| / max(1, sum |edges|) over targets: 0 if exact (O1)."""
        return self._missed

    @cached_property
    def _missed(self) -> float:
        targets = self.of_kind(*FEATURES, LOGIT, DIRECTION)
        sums = self.row_sums
        gap = (self.nodes.preactivation - sums.weights - self.dropped).abs() / sums.sizes.clamp(min=1)
        return float(gap[targets].max()) if bool(targets.any()) else 0.0

    def influence(self, targets: Iterable[str | int] | None = None, *, bias: bool = False) -> Tensor:
        """Raw influence of every node on what is explained, (n_nodes), or on each of m nodes given by id or number,
        (m, n_nodes); see `scores` for `bias`.

        Influence follows the sizes of edges, as shares of each row; for signed effects see `total_effects`.
        """
        if targets is None:
            return inf.node_influence(self, self.target_weights, bias=bias)
        return inf.influence_on(self, self.places(targets), bias=bias)

    def total_effects(self, targets: Iterable[str | int] | None = None) -> Effects:
        """What every node does to some targets along all paths, signed, in each target's own units, and the direct and
        indirect parts of it (float64).

        targets: nodes by id or number; None: all that is explained. Raises KeyError for an unknown id.
        """
        from pullback.attribution.effects import effects

        return effects(self, self.places(targets))

    def shares(self, targets: Iterable[str | int] | None = None) -> Tensor:
        """The share of some targets that goes through each node, signed, (m, n_nodes) float64: `total_effects` divided
        by the target's value. Meaningless for a target whose value is next to 0."""
        from pullback.attribution.effects import shares

        return shares(self, self.places(targets))

    def places(self, nodes: Iterable[str | int] | None = None) -> Tensor:
        """Numbers of nodes given by id or number, (m); None: of all that is explained. Raises KeyError for an unknown
        id, IndexError for a number that no node has, and TypeError for one that is not whole, or a mask."""
        return self.explained.nonzero()[:, 0] if nodes is None else places_of(nodes, self.node_ids, self.n_nodes)

    def cumulative_influence(self) -> Tensor:
        """Share of all influence carried by nodes at least as influential, (n_nodes): small is important.

        A pruned graph remembers the share that its nodes had in the whole one.
        """
        return inf.cumulative(self) if self.cumulative is None else self.cumulative

    def scores(self, *, bias: bool = False) -> Scores:
        """Replacement and completeness, of a whole graph: pruning takes errors away, so a pruned one flatters itself
        (it carries the whole one's in `meta["scores"]`).

        `bias=True` lets bias, position and own leaves take their share of each row.
        """
        return Scores(*inf.scores(self, bias=bias))

    def edge(self, source: str, target: str) -> float:
        """Weight of one edge by node ids, 0 where there is none. Raises KeyError for an unknown id."""
        s, t = self.places([source, target]).tolist()
        span = slice(int(self.indptr[t]), int(self.indptr[t + 1]))
        hit = (self.sources[span] == s).nonzero()
        return float(self.weights[span][hit[0, 0]]) if len(hit) else 0.0

    def prune(self, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> Graph:
        """The part that carries `node_threshold` of node influence and `edge_threshold` of edge influence.

        Tokens and what is explained always stay; what goes is added to each target's dropped mass.
        """
        from pullback.attribution.prune import prune

        return prune(self, node_threshold, edge_threshold)

    def subgraph(self, keep_nodes: Tensor, keep_edges: Tensor | None = None) -> Graph:
        """The graph on a mask of nodes (and of edges), with the signed weight of what was cut added to `dropped`.

        Raises ValueError for anything but masks, (n_nodes) and (n_edges) of bool.
        """
        for name, mask, n in (("keep_nodes", keep_nodes, self.n_nodes), ("keep_edges", keep_edges, self.n_edges)):
            if mask is not None and (mask.dtype != torch.bool or mask.shape != (n,)):
                raise ValueError(f"subgraph: {name} must be a mask [{n}] of bool, got {mask.dtype} {list(mask.shape)}")
        own = self.nodes.kind == OWN
        keep_nodes = keep_nodes.clone()
        keep_nodes[own] &= keep_nodes[self.nodes.feature[own]]  # an own leaf goes with its target
        rows = self.rows()
        kept = keep_nodes[rows] & keep_nodes[self.sources.long()]
        if keep_edges is not None:
            kept = kept & keep_edges
        lost = torch.zeros_like(self.dropped).index_add_(0, rows[~kept], self.weights[~kept])
        new_id = torch.cumsum(keep_nodes, 0) - 1
        counts = torch.bincount(new_id[rows[kept]], minlength=int(keep_nodes.sum()))
        nodes = self.nodes[keep_nodes]
        own = nodes.kind == OWN
        nodes.feature[own] = new_id[nodes.feature[own]]
        meta = dict(self.meta)
        for kind, name in LABELLED.items():
            if name in meta:
                stays = keep_nodes[self.of_kind(kind)].tolist()
                meta[name] = [label for label, stay in zip(meta[name], stays, strict=True) if stay]
        return replace(
            self,
            nodes=nodes,
            indptr=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            sources=new_id[self.sources[kept].long()].to(torch.int32),
            weights=self.weights[kept],
            dropped=(self.dropped + lost)[keep_nodes],
            cumulative=None if self.cumulative is None else self.cumulative[keep_nodes],
            given_weights=None if self.given_weights is None else self.given_weights[keep_nodes],
            meta=meta,
        )

    def labels(self) -> dict[int, str]:
        """Names of logits and directions, by node."""
        places = {kind: self.of_kind(kind).nonzero()[:, 0].tolist() for kind in LABELLED}
        named = (zip(places[kind], self.meta.get(name, []), strict=True) for kind, name in LABELLED.items())
        return {place: label for pairs in named for place, label in pairs}

    def answers(self) -> list[tuple[str, float]]:
        """The explained next tokens and their probabilities, in node order."""
        return list(zip(self.meta["logit_labels"], self.nodes.activation[self.of_kind(LOGIT)].tolist(), strict=True))

    def top_features(self, n: int = 10) -> list[tuple[int, int, int]]:
        """(layer, pos, feature) of the n features of MLPs with the largest influence."""
        which = self.of_kind(FEATURE).nonzero()[:, 0]
        best = which[torch.argsort(self.influence()[which], descending=True, stable=True)[:n]]
        return [(int(self.nodes.layer[b]), int(self.nodes.pos[b]), int(self.nodes.feature[b])) for b in best]

    # ---- out ------------------------------------------------------------------------------------------------------

    def to_pandas(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(nodes, edges), with columns id, kind, layer, pos, feature, token, activation, preactivation, influence and
        source, target, weight. `token` is the prompt's token at `pos`; of a logit, the token it is the logit of; of
        a direction, its label."""
        import pandas as pd

        ids = np.array(self.node_ids(), dtype=object)
        n = self.nodes
        tokens = [self.meta["str_tokens"][p] for p in n.pos.tolist()]
        for place, label in self.labels().items():
            tokens[place] = label
        nodes = pd.DataFrame(
            {
                "id": ids,
                "kind": [KINDS[k] for k in n.kind.tolist()],
                "layer": n.layer.numpy(),
                "pos": n.pos.numpy(),
                "feature": n.feature.numpy(),
                "token": tokens,
                "activation": n.activation.numpy(),
                "preactivation": n.preactivation.numpy(),
                "influence": self.influence().numpy(),
            }
        )
        edges = pd.DataFrame(
            {"source": ids[self.sources.numpy()], "target": ids[self.rows().numpy()], "weight": self.weights.numpy()}
        )
        return nodes, edges

    def to_networkx(self) -> networkx.DiGraph:
        """Nodes by id with the columns of `to_pandas`, edges with `weight`, `meta` on the graph."""
        from pullback.attribution.exchange.tables import to_networkx

        return to_networkx(self)

    def to_arrow(self) -> tuple[pyarrow.Table, pyarrow.Table]:
        """(nodes, edges), with the columns of `to_pandas` and all else that a graph is; for Parquet and Feather."""
        from pullback.attribution.exchange.tables import to_arrow

        return to_arrow(self)

    @staticmethod
    def from_arrow(nodes: pyarrow.Table, edges: pyarrow.Table) -> Graph:
        """The graph of such tables, whose rows may have been sorted or left out. Raises ValueError for other tables."""
        from pullback.attribution.exchange.tables import from_arrow

        return from_arrow(nodes, edges)

    def save(self, path: str | PathLike[str]) -> None:
        """Write one safetensors file, atomically."""
        from pullback.attribution.io import save

        save(self, path)

    @staticmethod
    def load(path: str | PathLike[str]) -> Graph:
        """Read what `save` wrote. Raises ValueError for another or a damaged file."""
        from pullback.attribution.io import load

        return load(path)

    def to_circuit_tracer(self, path: str | PathLike[str], *, model: Any = None, scan: str | None = None) -> None:
        """Write a file for `circuit_tracer.Graph.from_pt`: a dense matrix, of features, errors, tokens and logits only.

        `model` is asked for its sizes and its tokenizer's name; `scan` names the transcoders.
        """
        from pullback.attribution.exchange.circuit_tracer import to_circuit_tracer

        to_circuit_tracer(self, path, model, scan)

    @staticmethod
    def from_circuit_tracer(path: str | PathLike[str], *, tokenizer: Any = None) -> Graph:
        """Read what circuit-tracer's `Graph.to_pt` wrote, without running code of the file.

        The file has no names of tokens; a `tokenizer` (its `decode`) gives them. It does not say what its rows should
        sum to, so `check()` is NaN. Raises ValueError for another or a damaged file.
        """
        from pullback.attribution.exchange.circuit_tracer import from_circuit_tracer

        return from_circuit_tracer(path, tokenizer)

    def to_neuronpedia(
        self, path: str | PathLike[str] | None = None, *, labels: Mapping[str, str] | None = None, **metadata: Any
    ) -> dict[str, Any]:
        """The graph JSON that circuit-tracer's viewer and Neuronpedia read; written to `path` if given.

        `labels` names features by node id; other keyword arguments go into the metadata (`slug`, `scan`, ...).
        """
        from pullback.attribution.exchange.neuronpedia import to_neuronpedia

        return to_neuronpedia(self, path, labels or {}, metadata)

    @staticmethod
    def from_neuronpedia(source: str | PathLike[str] | Mapping[str, Any]) -> Graph:
        """Read a graph JSON, or its payload: of circuit-tracer, Neuronpedia, or `to_neuronpedia`, which is read whole.

        Others do not say what a target should sum to, so their `check()` is NaN. Labels, pins and supernodes are in
        `view`. Raises ValueError for a payload that does not have the form, or kinds of nodes unknown here.
        """
        from pullback.attribution.exchange.neuronpedia_reader import from_neuronpedia

        return from_neuronpedia(source)

    @property
    def view(self) -> GraphView:
        """Pins, supernodes and labels, as read from a file or URL, or set by `with_view`."""
        from pullback.attribution.exchange.view import GraphView

        return GraphView.from_params(self.meta.get("view", {}))

    def with_view(self, view: GraphView | str) -> Graph:
        """The graph with other pins and supernodes, and further labels; from a `GraphView` or a viewer's URL.

        Raises ValueError where nothing that is marked is in this graph.
        """
        from pullback.attribution.exchange.view import marked_by

        return marked_by(self, view)

    def to_html(
        self,
        path: str | PathLike[str] | None = None,
        *,
        pinned: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        cards: Mapping[str, Mapping[str, Any]] | None = None,
        compare: Graph | None = None,
    ) -> str:
        """One self-contained page; written to `path` if given, returned as text.

        `cards` tells more of features, by node id or "{layer}_{feature}" (`viz.graph_page`); `compare` is another graph
        of the same model, shown with this one and their difference on one page (`viz.diff_page`).
        """
        from pullback.attribution.exchange.neuronpedia import to_html

        return to_html(self, path, pinned, labels or {}, cards, compare)

    def _repr_html_(self) -> str:
        from pullback.attribution.exchange.neuronpedia import notebook_html

        return notebook_html(self)
