"""Head loadings: which heads carry an edge of an attribution graph (Kamath et al. 2025; METHODS 5.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pullback.attribution.attention import flow
from pullback.attribution.attention.endpoints import Read, Reads, Sources, reads_of, sources_of
from pullback.attribution.graph import Graph
from pullback.attribution.local import LocalModel, local_model
from pullback.lens import Lens, as_lens
from pullback.lens.structure import tolerance
from pullback.transcoders import LayeredDictionary

if TYPE_CHECKING:
    import pandas as pd

HOPS = ("last", "first")
WORKING_MEMORY = 2**28
LARGEST = 2**31  # bytes of loadings that nobody asked for edge by edge


@dataclass(frozen=True, eq=False)
class HeadLoadings:
    """Edges split exactly: weights = bypass + the sum of heads (O3).

    An edge is a sum over paths from its source through the residual stream, frozen heads and skip connections. `bypass`
    is the paths that go through no head. Every other path counts for one head: with hop "last", for the head it goes
    through last, the one that brings it to the target's position; with "first", for the head that takes it from the
    source's. They differ only where two heads follow one another.
    """

    edges: list[tuple[str, str]]  # E x (source, target), by node ids
    bypass: Tensor  # (E)
    heads: Tensor  # (E, n_layers, n_heads)
    hop: str

    @property
    def weights(self) -> Tensor:
        """The edges, (E)."""
        return self.bypass + self.heads.sum((1, 2))

    def __repr__(self) -> str:
        return f"HeadLoadings({len(self.edges)} edges, hop={self.hop!r})"

    def top(self, edge: int = 0, n: int = 10) -> list[tuple[int, int, float]]:
        """(layer, head, loading) of the n heads that carry most of one edge, in absolute value."""
        flat = self.heads[edge].flatten()
        best = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        H = self.heads.shape[2]
        return [(place // H, place % H, float(flat[place])) for place in best]

    def to_pandas(self) -> pd.DataFrame:
        """source, target, layer, head, loading; the bypass as layer and head -1."""
        import pandas as pd

        _, L, H = self.heads.shape
        loading = torch.cat([self.bypass[:, None], self.heads.flatten(1)], 1)
        layers, heads = torch.meshgrid(torch.arange(L), torch.arange(H), indexing="ij")
        times = 1 + L * H
        return pd.DataFrame(
            {
                "source": [s for s, _ in self.edges for _ in range(times)],
                "target": [t for _, t in self.edges for _ in range(times)],
                "layer": torch.cat([torch.tensor([-1]), layers.flatten()]).repeat(len(self.edges)).numpy(),
                "head": torch.cat([torch.tensor([-1]), heads.flatten()]).repeat(len(self.edges)).numpy(),
                "loading": loading.flatten().numpy(),
            }
        )


@torch.no_grad()
def head_loadings(
    model: Any,
    sets: LayeredDictionary,
    graph_or_prompt: Graph | str | Sequence[int] | Tensor,
    edges: Sequence[tuple[str, str]] | None = None,
    *,
    hop: str = "last",
    attention_saes: LayeredDictionary | None = None,
    strict: bool = True,
) -> HeadLoadings:
    """Split edges of an attribution graph into what goes through each head and what goes through none.

    Costs a sweep of the frozen model for every distinct source (hop "last") or target ("first") among the edges.

    Args:
        model, sets, attention_saes: what the graph was made with.
        graph_or_prompt: a graph of `attribute`, pruned or not; or its prompt.
        edges: (source, target) pairs of node ids, as `graph.node_ids()` has them, whether or not the graph kept them.
            None: all edges of the graph between nodes with a path (an own leaf has none), except into directions, whose
            vectors a graph does not hold.
        hop: which head of a path it counts for: "last" or "first"; see `HeadLoadings`.
        strict: False accepts transcoders of a fine-tuned sibling.

    Returns:
        loadings, whose `weights` are the edges of the graph.

    Raises:
        ValueError: a name that is no node of this prompt, another hop, a prompt without edges, a graph of so many that
            their loadings take more than 2 GiB, or one whose edges are not those of this model and set.
    """
    if hop not in HOPS:
        raise ValueError(f"head_loadings: hop must be one of {', '.join(HOPS)}, got {hop!r}")
    lens = as_lens(model)
    if isinstance(graph_or_prompt, Graph):
        graph, prompt = graph_or_prompt, graph_or_prompt.prompt_tokens()
    else:
        graph, prompt = None, graph_or_prompt
    if edges is None:
        if graph is None:
            raise ValueError("head_loadings: a prompt alone has no edges; give edges=[(source, target)] or a graph")
        bytes_each = lens.n_layers * lens.n_heads * graph.weights.element_size()
        if graph.n_edges * bytes_each > LARGEST:
            raise ValueError(
                f"head_loadings: the graph has {graph.n_edges} edges, whose loadings would take "
                f"{graph.n_edges * bytes_each / 2**30:.0f} GiB; prune it first, or name edges"
            )
        edges = _all_edges(graph)
    try:
        named = [(str(s), str(t)) for s, t in edges]
    except ValueError as error:
        raise ValueError("head_loadings: edges are pairs of node ids, [(source, target), ...]") from error
    if not named:
        raise ValueError("head_loadings: edges is empty; give at least one (source, target)")
    local = local_model(lens, sets, lens.to_tokens(prompt), strict=strict, attention_saes=attention_saes)
    found = _split(local, named, hop)
    if graph is not None:
        _must_be_of(graph, found, lens)
    return found


def _all_edges(graph: Graph) -> list[tuple[str, str]]:
    ids = graph.node_ids()
    pairs = zip(graph.sources.tolist(), graph.rows().tolist(), strict=True)
    named = ((ids[s], ids[t]) for s, t in pairs)
    return [(s, t) for s, t in named if not s.startswith("own_") and not t.startswith("D_")]


class Batch(NamedTuple):
    """A few distinct sources, or targets, among edges, and all those edges: `which` (e) of them, from source s (e) to
    target t (e)."""

    which: Tensor
    sources: Sources
    reads: Reads
    s: Tensor
    t: Tensor


def batches(
    local: LocalModel, edges: list[tuple[str, str]], swept: int, known: Mapping[str, Read] | None = None
) -> Iterator[Batch]:
    """Edges by their sources (swept 0) or targets (1), a few of these at a time: fields have a vector at every position
    for each. `known`: see `reads_of`."""
    for names in _chunks(list(dict.fromkeys(edge[swept] for edge in edges)), _at_a_time(local)):
        chosen = set(names)
        which = [e for e, edge in enumerate(edges) if edge[swept] in chosen]
        ends = [list(dict.fromkeys(edges[e][end] for e in which)) for end in (0, 1)]
        place = [{name: n for n, name in enumerate(part)} for part in ends]
        device = local.trace.embed.device
        s, t = (torch.tensor([place[end][edges[e][end]] for e in which], device=device) for end in (0, 1))
        at = torch.tensor(which, device=device)
        yield Batch(at, sources_of(local, ends[0]), reads_of(local, ends[1], known), s, t)


def _split(local: LocalModel, edges: list[tuple[str, str]], hop: str) -> HeadLoadings:
    L, H = local.n_layers, local.trace.layers[0].weights.W_O.shape[0]
    bypass = local.trace.embed.new_zeros(len(edges))
    heads = bypass.new_zeros(len(edges), L, H)
    for which, sources, reads, s, t in batches(local, edges, HOPS.index(hop)):
        parts = (_by_last if hop == "last" else _by_first)(local, sources, reads, s, t)
        bypass[which] = _by_none(local, sources, reads, s, t)
        heads[which] = torch.stack(parts, 1)
    return HeadLoadings(edges, bypass.cpu(), heads.cpu(), hop)


def _at_a_time(local: LocalModel) -> int:
    w = local.trace.layers[0].weights
    per_position = 4 * w.W_O.shape[2] + 3 * w.W_O.shape[0] * w.W_O.shape[1]
    return max(1, WORKING_MEMORY // (local.n_pos * per_position * local.trace.embed.element_size()))


def _chunks(names: list[str], size: int) -> Iterator[list[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))


def _by_none(local: LocalModel, sources: Sources, reads: Reads, s: Tensor, t: Tensor) -> Tensor:
    """Paths through no head, (E): a source that stays at its position, as the target reads it."""
    streams = torch.stack([read for _, read in flow.ascend(local, sources, heads=False)])  # (L + 1, n, d)
    stays = (sources.pos[s] == reads.pos[t]) & ~reads.at_attention[t]
    return torch.where(stays, (streams[reads.layer[t], s] * reads.vectors[t]).sum(-1), 0)


def _by_last(local: LocalModel, sources: Sources, reads: Reads, s: Tensor, t: Tensor) -> list[Tensor]:
    """L x (E, n_heads): sources that came by any path to a head, after which the target reads them directly."""
    direct = list(flow.descend(local, reads, heads=False))[::-1]
    arriving = flow.ascend(local, sources, heads=True)
    parts = []
    for layer, g, (field, _) in zip(local.trace.layers, direct, arriving, strict=False):  # the last is ln_final's
        at_z = g @ layer.weights.W_O.transpose(1, 2)  # (n_heads, m, d_head)
        parts.append((flow.mixed(layer, field)[:, reads.pos[t], s] * at_z[:, t]).sum(-1).T)
    return parts


def _by_first(local: LocalModel, sources: Sources, reads: Reads, s: Tensor, t: Tensor) -> list[Tensor]:
    """L x (E, n_heads): sources that come to a head directly, from which the target reads them by any path."""
    T, m = local.n_pos, len(reads.pos)
    direct = [stream for stream, _ in flow.ascend(local, sources, heads=False)]
    parts = []
    for k, field in zip(reversed(range(local.n_layers)), flow.descend(local, reads, heads=True), strict=True):
        layer = local.trace.layers[k]
        at_z = (field @ layer.weights.W_O.transpose(1, 2)).view(-1, T, m * layer.weights.W_O.shape[1])
        at_v = (layer.mixing.transpose(1, 2) @ at_z).view(-1, T, m, layer.weights.W_O.shape[1])
        v = flow.per_head(layer, flow.values(layer, direct[k], sources.pos))
        parts.append((at_v[:, sources.pos[s], t] * v[:, s]).sum(-1).T)
    return parts[::-1]


def _must_be_of(graph: Graph, found: HeadLoadings, lens: Lens) -> None:
    """A graph of another model or set has other edges: what it kept must agree."""
    rounded = graph.meta.get("generation_settings", {}).get("precision") == "bfloat16"
    size = float(graph.weights.abs().max()) if graph.n_edges else 0.0
    allowed = max(tolerance(torch.bfloat16 if rounded else lens.dtype), 1e-6) * max(1.0, size)
    place = {name: n for n, name in enumerate(graph.node_ids())}
    for edge, ours in zip(found.edges, found.weights.tolist(), strict=True):
        s, t = (place.get(name) for name in edge)
        if s is None or t is None:
            continue
        span = slice(int(graph.indptr[t]), int(graph.indptr[t + 1]))
        for theirs in graph.weights[span][graph.sources[span] == s].tolist():
            if not abs(ours - theirs) <= allowed:
                raise ValueError(
                    f"head_loadings: the edge {edge[0]} -> {edge[1]} is {theirs:.6g} in the graph, and {ours:.6g} with "
                    "this model and set: the graph was made with others"
                )
