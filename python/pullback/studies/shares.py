"""Where a margin comes from: the shares that heads, MLP features and tokens contribute to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pullback.attribution import Graph, LogitDifference, LogitTarget, attribute
from pullback.attribution.attention.components import components
from pullback.attribution.effects import effects
from pullback.attribution.local import local_model
from pullback.attribution.nodes import DIRECTION, FEATURES, LOGIT
from pullback.causal import Ablation, Curves, Margin, faithfulness_curves, graph_scores, hierarchical_scores
from pullback.lens import Lens
from pullback.studies.prompts import Prompts
from pullback.transcoders import LayeredDictionary


@dataclass(frozen=True)
class Shares:
    """Shares of the margin, means over prompts of what is contributed over the mean margin.

    heads: {(layer, head): share} and layers: {(kind, layer): share} are what each writes directly to the last
    position, the last norm held; layers and `rest` (embedding, constants) sum to 1.
    """

    heads: dict[tuple[int, int], float]
    layers: dict[tuple[str, int], float]
    rest: float


@torch.no_grad()
def direct_shares(lens: Lens, sets: LayeredDictionary, prompts: Prompts, n: int = 16) -> Shares:
    """Of the first n prompts. What layers write is split into heads, features, errors and biases."""
    heads: dict[tuple[int, int], float] = {}
    layers: dict[tuple[str, int], float] = {}
    whole = 0.0
    for row in range(min(n, len(prompts))):
        local = local_model(lens, sets, prompts.row(row))
        last = local.n_pos - 1
        wanted = prompts.wanted[row].to(local.trace.embed)
        reading = local.trace.ln_final.pullback((lens.W_U.to(wanted) @ wanted)[None], local.trace.final_scale[-1:])[0]
        parts = components(local, local.n_layers, last)
        for name, kind, value in zip(parts.names, parts.kinds, (parts.vectors @ reading).tolist(), strict=True):
            words = name.split("_")
            if kind not in ("embedding", "position"):
                layers[kind, int(words[0])] = layers.get((kind, int(words[0])), 0.0) + value
            if kind == "head":
                place = int(words[0]), int(words[2])
                heads[place] = heads.get(place, 0.0) + value
        whole += float(lens.uncapped(local.trace.logits[last]) @ wanted)
    layers = {place: value / whole for place, value in layers.items()}
    return Shares({place: value / whole for place, value in heads.items()}, layers, 1 - sum(layers.values()))


def graph_of(lens: Lens, sets: LayeredDictionary, prompts: Prompts, row: int) -> Graph:
    """The graph of one prompt's margin, and of the two tokens that `Prompts.pair` names."""
    wanted = prompts.wanted[row]
    coefficients: dict[int | str, float] = {int(token): float(wanted[token]) for token in wanted.nonzero()[:, 0]}
    asked = [LogitDifference(coefficients, label="margin"), *(LogitTarget(t, weight=1e-9) for t in prompts.pair(row))]
    return attribute(lens, sets, prompts.row(row), attribution_targets=asked)


def token_shares(graph: Graph) -> list[float]:
    """Of each position, what its leaves contribute to the margin along all paths, as a share of it: (T).

    Embedding, errors and biases of a position count for it; what is missing from 1 is the margin's own constant.
    """
    target = graph.of_kind(DIRECTION).nonzero()[:, 0]
    total = effects(graph, target).total[0]
    leaves = ~graph.of_kind(*FEATURES, LOGIT, DIRECTION)
    positions = graph.nodes.pos[leaves].long().clamp(min=0)
    sums = torch.zeros(len(graph.meta["tokens"]), dtype=total.dtype).index_add_(0, positions, total[leaves])
    return (sums / graph.nodes.preactivation[target].double()).tolist()


def curves_of(
    lens: Lens,
    sets: LayeredDictionary,
    graph: Graph,
    pair: tuple[int, int],
    ablation: Ablation | None = None,
    errors: str = "nodes",
) -> Curves:
    """Faithfulness of growing circuits of one prompt, on the difference of two tokens: nodes ranked by hierarchical
    attribution, and by what they do along all paths. ablation, errors: as of `faithfulness_curves`."""
    margin = Margin(*pair)
    scores = {"hierarchical": hierarchical_scores(graph, margin), "all paths": graph_scores(graph, margin)}
    return faithfulness_curves(lens, sets, graph, scores, margin=margin, ablation=ablation, errors=errors)
