"""The mean graph: nodes and edges of many prompts laid over one another."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from pullback.attribution.collection.keys import Align, Ints, NodeKeys, direction_names, node_keys
from pullback.attribution.collection.tally import Tally
from pullback.attribution.graph import LABELLED, Graph
from pullback.attribution.nodes import DIRECTION, LOGIT, OWN, Nodes

COUNT, ACTIVATION, PREACTIVATION, DROPPED, WEIGHT = range(5)


class MeanGraph:
    """Sums of nodes and edges, of which `graph` is the mean: what a prompt lacks counts as 0.

    Rows of a sum of graphs are sums of their rows, so the mean sums to its pre-activations as they do.
    """

    def __init__(self, align: Align) -> None:
        self.align: Align = align
        self.nodes, self.edges = Tally(1, 5), Tally(2, 1)
        self.n_prompts = 0
        self.tokens: dict[int, str | None] = {}  # place -> the token that all prompts have there, or None
        self.labels: dict[tuple[int, int], str] = {}  # of a kind and id
        self.meta: dict[str, object] = {}

    def add(self, graph: Graph) -> None:
        n_layers = graph.meta["n_layers"]
        if self.meta.setdefault("n_layers", n_layers) != n_layers:
            raise ValueError(
                f"collection: a graph of {n_layers} layers among graphs of {self.meta['n_layers']}: "
                "only graphs of one model, or of its fine-tuned siblings, have a mean"
            )
        for name in ("model_name", "hook_in", "dtype"):
            self.meta.setdefault(name, graph.meta.get(name))
        keys, n = node_keys(graph, self.align), graph.nodes
        columns = [torch.ones(len(n)), n.activation, n.preactivation, graph.dropped, graph.target_weights]
        # A feature at three positions is still a feature of one prompt.
        values = np.stack([column.double().numpy() for column in columns], 1)
        values[:, COUNT] = _first_of_each(keys)
        self.nodes.add(keys[:, None], values)
        ends = np.stack([keys[graph.rows().numpy()], keys[graph.sources.numpy()]], 1)
        self.edges.add(ends, graph.weights.double().numpy()[:, None])
        for place, token in enumerate(graph.meta["str_tokens"], start=1 - len(graph.meta["str_tokens"])):
            place = 0 if self.align == "fold" else place
            self.tokens[place] = token if self.tokens.get(place, token) == token else None
        ids = NodeKeys.unpacked(keys).id
        labels = {LOGIT: graph.meta.get(LABELLED[LOGIT], []), DIRECTION: direction_names(graph)}
        for kind, own in labels.items():
            for i, label in zip(ids[graph.of_kind(kind).numpy()].tolist(), own, strict=True):
                if self.labels.setdefault((kind, i), label) != label and kind == DIRECTION:
                    raise ValueError(
                        f"collection: {label!r} and {self.labels[kind, i]!r} are taken for the same direction: give "
                        "one of them another label"
                    )
        self.n_prompts += 1

    def graph(self) -> tuple[Graph, torch.Tensor]:
        """The mean, and the share of prompts in which each node occurs, (n_nodes)."""
        nodes, edges = self.nodes.settle(), self.edges.settle()
        keys = nodes.keys[:, 0]
        of = NodeKeys.unpacked(keys)
        ids = of.id.copy()
        ids[of.kind == DIRECTION] = _numbers(of.id[of.kind == DIRECTION])
        own = of.kind == OWN
        ids[own] = np.searchsorted(keys, of.of_targets().packed()[own])
        mean = torch.from_numpy(nodes.sums / self.n_prompts)
        targets, sources = (np.searchsorted(keys, column) for column in edges.keys.T)
        counts = torch.from_numpy(np.bincount(targets, minlength=len(keys)))
        dtype = getattr(torch, "float64" if self.meta["dtype"] == "float64" else "float32")
        places = sorted(self.tokens)
        shown = [self.tokens[place] for place in places]
        graph = Graph(
            nodes=Nodes(
                kind=torch.from_numpy(of.kind).to(torch.int8),
                layer=torch.from_numpy(of.layer).to(torch.int32),
                pos=torch.from_numpy(of.place - places[0]).to(torch.int32),
                feature=torch.from_numpy(ids),
                activation=mean[:, ACTIVATION].to(dtype),
                preactivation=mean[:, PREACTIVATION].to(dtype),
            ),
            indptr=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            sources=torch.from_numpy(sources).to(torch.int32),
            weights=torch.from_numpy(edges.sums[:, 0] / self.n_prompts).to(dtype),
            dropped=mean[:, DROPPED].to(dtype),
            given_weights=mean[:, WEIGHT].to(dtype),
            meta={
                **self.meta,
                "prompt": f"mean of {self.n_prompts} prompts",
                "n_prompts": self.n_prompts,
                "tokens": [-1] * len(places),
                "str_tokens": ["*" if token is None else token for token in shown],
                **{
                    name: [self.labels[kind, int(i)] for i in of.id[of.kind == kind]] for kind, name in LABELLED.items()
                },
            },
        )
        return graph, mean[:, COUNT]


def mean_graph(graphs: Iterable[Graph], align: Align, min_share: float) -> Graph:
    """The mean over prompts, on the nodes that occur in at least `min_share` of them."""
    laid = MeanGraph(align)
    for graph in graphs:
        laid.add(graph)
    mean, share = laid.graph()
    # An own leaf goes with its target; what is explained stays.
    return mean.subgraph((share >= min_share) | mean.of_kind(OWN) | mean.explained) if min_share > 0 else mean


def _numbers(ids: Ints) -> Ints:
    """0, 1, ... for the different ones."""
    return np.unique(ids, return_inverse=True)[1]


def _first_of_each(keys: Ints) -> np.ndarray:
    """1 at the first of equal keys, 0 at the others."""
    first = np.zeros(len(keys))
    first[np.unique(keys, return_index=True)[1]] = 1
    return first
