"""The circuit of one prompt: the features and heads that carry its margin, and whether ablating them removes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pullback.attribution import Graph, head_loadings
from pullback.attribution.effects import values
from pullback.attribution.hierarchical import Gate, Hierarchical, circuit_of
from pullback.attribution.nodes import DIRECTION, FEATURE, OWN
from pullback.causal import Ablation
from pullback.lens import Lens
from pullback.studies.control import removal
from pullback.studies.dictionaries import Dictionaries, Drop, listed
from pullback.studies.features import words
from pullback.studies.prompts import Prompts
from pullback.studies.shares import curves_of, graph_of, token_shares
from pullback.transcoders import LayeredDictionary

TAU = 0.01
"""What a node must carry to be in a circuit, as a share of the margin."""
SHOWN = 12

Place = tuple[int, int, int]
"""(layer, position, feature)"""


def typical(lens: Lens, prompts: Prompts, n: int) -> list[int]:
    """Up to n rows of prompts with different keys, those whose margin is nearest the mean first."""
    margins = prompts.margins(lens.logits(prompts.tokens))
    first: dict[str, int] = {}
    for row in (margins - margins.mean()).abs().argsort(stable=True).tolist():
        first.setdefault(prompts.keys[row], row)
    return list(first.values())[:n]


def margin_circuit(graph: Graph, tau: float = TAU) -> Hierarchical:
    """The hierarchical circuit of the margin in a graph of `graph_of`: nodes that carry at least tau of it."""
    return circuit_of(graph, int(graph.of_kind(DIRECTION).nonzero()[0, 0]), gate=Gate(tau, relative=True))


def feature_shares(circuit: Hierarchical) -> dict[Place, float]:
    """What each feature of a circuit carries of its target along kept paths, as a share of it, the largest first.

    Features that follow one another count for the same paths, so shares do not sum to 1.
    """
    nodes = circuit.whole.nodes
    which = (circuit.kept & circuit.whole.of_kind(FEATURE)).nonzero()[:, 0]
    carried = circuit.attribution[which] / values(circuit.whole)[circuit.target]
    order = carried.argsort(descending=True, stable=True)
    columns = (column[which[order]].tolist() for column in (nodes.layer, nodes.pos, nodes.feature))
    return dict(zip(zip(*columns, strict=True), carried[order].tolist(), strict=True))


@torch.no_grad()
def head_shares(
    lens: Lens, sets: LayeredDictionary, circuit: Hierarchical, wanted: Tensor
) -> dict[tuple[int, int], float]:
    """{(layer, head): share}, what comes through each head along kept paths of a circuit of `margin_circuit`, as a
    share of the margin, which is the logits times `wanted` (V); the largest first.

    Each edge between kept nodes is split into what goes through each head last (`head_loadings`), in units of the
    margin. A head that feeds a feature and one that moves it on count for the same paths, so shares do not sum to 1.
    """
    graph, margin = circuit.graph, int(circuit.kept[: circuit.target].sum())
    names, value = graph.node_ids(), values(graph)
    passed_on = circuit.attribution[circuit.kept] / value
    # Loadings have no name for a margin: it is its logits.
    last = int(graph.nodes.pos[margin])
    logits = {f"{lens.n_layers + 1}_{token}_{last}": float(wanted[token]) for token in wanted.nonzero()[:, 0].tolist()}
    edges: dict[tuple[str, str], float] = {}
    leaf = graph.of_kind(OWN)[graph.sources.long()]
    for source, target in zip(graph.sources[~leaf].tolist(), graph.rows()[~leaf].tolist(), strict=True):
        ends = logits if target == margin else {names[target]: float(passed_on[target])}
        edges |= {(names[source], end): weight for end, weight in ends.items()}
    heads = head_loadings(lens, sets, graph.prompt_tokens(), list(edges)).heads.double()
    carried = torch.einsum("e,elh->lh", heads.new_tensor(list(edges.values())), heads) / value[margin]
    order = carried.flatten().argsort(descending=True, stable=True).tolist()
    return {divmod(place, lens.n_heads): float(carried.flatten()[place]) for place in order}


@torch.no_grad()
def readers(lens: Lens, sets: LayeredDictionary, circuit: Hierarchical) -> dict[Place, tuple[int, int]]:
    """Of features of layer 0 in a circuit, the head that brings most of what kept nodes give them; without those that
    get more from their own position."""
    graph = circuit.graph
    names, n = graph.node_ids(), graph.nodes
    first = (graph.of_kind(FEATURE) & (n.layer == 0))[graph.rows()] & ~graph.of_kind(OWN)[graph.sources.long()]
    targets, sources = graph.rows()[first].tolist(), graph.sources[first].tolist()
    if not targets:
        return {}
    edges = [(names[source], names[target]) for source, target in zip(sources, targets, strict=True)]
    loadings = head_loadings(lens, sets, graph.prompt_tokens(), edges)
    parts = torch.cat([loadings.bypass[:, None], loadings.heads[:, 0]], 1)
    found = {}
    for target in dict.fromkeys(targets):
        best = int(parts[torch.tensor(targets) == target].sum(0).argmax())
        if best:
            found[int(n.layer[target]), int(n.pos[target]), int(n.feature[target])] = (0, best - 1)
    return found


def only(dictionaries: Dictionaries, features: Iterable[Place]) -> Drop:
    """Ablates features of one prompt where they stand."""
    chosen = {site.start: [] for site in dictionaries.sites}
    start = {site.layer: site for site in dictionaries.sites if site.kind == "mlp"}
    for layer, pos, feature in features:
        site = start[layer]
        chosen[site.start].append(pos * site.sets[layer].d_sae + feature)
    return listed({site: torch.tensor(places, dtype=torch.long) for site, places in chosen.items()})


def circuit_report(
    lens: Lens,
    sets: LayeredDictionary,
    prompts: Prompts,
    row: int,
    *,
    draws: int,
    ablation: Ablation,
    errors: str,
    seed: int = 0,
) -> dict[str, Any]:
    """Of one prompt, as in the JSON of a study: shares of tokens, features and heads, what ablating the features takes
    and what as many others do, and what growing circuits carry (`ablation` and `errors` are of these)."""
    graph = graph_of(lens, sets, prompts, row)
    found = margin_circuit(graph)
    features, through = feature_shares(found), readers(lens, sets, found)
    dictionaries = Dictionaries(lens, {"mlp": sets})
    tested = removal(dictionaries, prompts[row : row + 1], only(dictionaries, features), draws=draws, seed=seed)
    pair = prompts.pair(row)
    curves = curves_of(lens, sets, graph, pair, ablation, errors)
    return {
        "tokens": graph.meta["str_tokens"],
        "key": prompts.keys[row],
        "pair": lens.to_str_tokens(torch.tensor(pair)),
        "token_shares": token_shares(graph),
        "nodes": graph.n_nodes,
        "edges": graph.n_edges,
        "circuit": {
            "tau": TAU,
            "nodes": found.graph.n_nodes,
            "edges": found.graph.n_edges,
            "n_features": len(features),
            "recovery": found.recovery,
            "features": [
                {"layer": place[0], "pos": place[1], "feature": place[2], "share": share, "through": through.get(place)}
                | words(lens, sets, place[0], place[2], through.get(place, ()))
                for place, share in list(features.items())[:SHOWN]
            ],
            "heads": [
                {"layer": layer, "head": head, "share": share}
                for (layer, head), share in head_shares(lens, sets, found, prompts.wanted[row]).items()
            ],
        },
        "check": tested.to_dict(),
        "faithfulness_nodes": max(curves.curves["hierarchical"]["signed"].n_nodes),
        "faithfulness": curves.to_dict(),
    }
