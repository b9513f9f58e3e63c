"""How far a graph foretells interventions: a score that it can carry."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pullback._util.statistics import spearman
from pullback.attribution import Graph
from pullback.attribution.influence import smallest_set
from pullback.attribution.local import Dictionaries
from pullback.attribution.nodes import ATTENTION_FEATURE, FEATURES
from pullback.causal.effects import predicted
from pullback.causal.intervene import held, run_from, unchanged_input
from pullback.causal.margin import Margin, margin_of
from pullback.causal.nodes import NodeSet
from pullback.causal.places import Setting, fitted, placed
from pullback.lens import Lens, Trace, as_lens, trace
from pullback.lens.depth import block_of
from pullback.lens.structure import relative_error, tolerance
from pullback.transcoders import LayeredDictionary

RUNS = ("direct", "constrained", "unconstrained")


@dataclass(frozen=True)
class RunAgreement:
    """Of one way to run the model: None where it is not defined (one feature, or nothing that changes).

    spearman: rank correlation of foretold and measured effects on the margin. cosine: of foretold and measured changes
    of the pre-activations of features downstream, mean over changed features. nmse: squared error of those changes as a
    share of their squares, all together.
    """

    spearman: float | None
    cosine: float | None
    nmse: float | None


@dataclass(frozen=True)
class Agreement:
    """Agreement in each way to run, for n features changed to `factor` times themselves."""

    n: int
    seed: int
    share: float
    factor: float
    target: int
    other: int | None
    runs: dict[str, RunAgreement]


def agreement(
    model: Any,
    sets: LayeredDictionary,
    graph: Graph,
    *,
    n: int = 32,
    seed: int = 0,
    share: float = 0.8,
    factor: float = 0.0,
    margin: Margin | None = None,
    runs: Sequence[str] = RUNS,
    attention_saes: LayeredDictionary | None = None,
    strict: bool = True,
) -> Agreement:
    """Change n features of the graph, one at a time, and compare what happens with what its edges say.

    Features are drawn at random, one from each of n groups of equal size by influence, among the fewest that carry
    `share` of it: most features of a graph do next to nothing, and ranking those is ranking noise. Three ways to run
    the model:

    * direct: patterns, norm scales and all MLP outputs held, and attention outputs where autoencoders stand in for
      them. The graph states direct effects exactly, so agreement is 1 up to rounding; anything else says that graph and
      model do not belong together.
    * constrained: patterns held, and all up to the feature's own place; what lies behind it runs on, the last norm too.
    * unconstrained: nothing held.

    Effects and changes smaller than what logits and pre-activations resolve count as 0.

    The result is also written into `graph.meta["agreement"]`, so that files and subgraphs carry it.

    Args:
        graph: of this model and set, by `attribute`; of a pruned graph, what is left of it is put to the test.
        share: 1 draws among all features.
        factor: what features are multiplied by; 0 ablates them.
        margin: the answer; by default the two likeliest tokens of the graph.
        runs: which of the three.
        attention_saes: those that the graph was made with.

    Raises:
        ValueError: a graph without features, or of another model, prompt or other dictionaries; an unknown run; n below
            1, share outside (0, 1] or factor 1.
    """
    runs = list(runs)
    if unknown := [run for run in runs if run not in RUNS]:
        raise ValueError(f"agreement: there are the runs {', '.join(RUNS)}, not {', '.join(unknown)}")
    if factor == 1:
        raise ValueError("agreement: factor 1 leaves features as they are; 0 ablates them")
    n, seed, share, factor = operator.index(n), operator.index(seed), float(share), float(factor)  # files carry them
    chosen = _stratified(graph, n, share, seed)
    lens = as_lens(model)
    dictionaries = fitted(lens, sets, attention_saes, strict=strict)
    base = trace(lens, lens.to_tokens(graph.prompt_tokens()))
    margin = margin_of(graph) if margin is None else margin
    test = _Test(lens, dictionaries, graph, base, margin, factor)
    found = Agreement(
        len(chosen), seed, share, factor, margin.target, margin.other, {run: test.run(run, chosen) for run in runs}
    )
    graph.meta["agreement"] = asdict(found)
    return found


def _stratified(graph: Graph, n: int, share: float, seed: int) -> list[int]:
    """n feature nodes, one from each of n neighbouring groups by influence."""
    features = graph.of_kind(*FEATURES).nonzero()[:, 0]
    if n < 1 or not 0 < share <= 1 or not len(features):
        raise ValueError(
            "agreement: n must be at least 1, share in (0, 1], and the graph have features; got "
            f"{n}, {share}, {len(features)}"
        )
    influence = graph.influence()[features]
    ranked = features[torch.argsort(influence, descending=True, stable=True)]
    if share < 1:
        ranked = ranked[: int(smallest_set(influence, share).sum())]
    n = min(n, len(ranked))
    generator = torch.Generator().manual_seed(seed)
    within = (torch.rand(n, generator=generator, dtype=torch.float64) + torch.arange(n)) * (len(ranked) / n)
    return ranked[within.long().clamp(max=len(ranked) - 1)].tolist()


class _Test:
    """A graph, the run that it is of, and one changed feature after another."""

    def __init__(
        self, lens: Lens, dictionaries: Dictionaries, graph: Graph, base: Trace, margin: Margin, factor: float
    ) -> None:
        self.lens, self.dictionaries, self.graph, self.base = lens, dictionaries, graph, base
        self.margin, self.factor, self.weights = margin, factor, margin.weights(graph)
        self.features = graph.of_kind(*FEATURES).nonzero()[:, 0]
        self.nodes, self.depth = graph.nodes[self.features], graph.nodes.depth
        _must_be_made_with(graph, dictionaries, base)
        self.before = self._preactivations(
            [{i: unchanged_input(sets, base, i) for i in sets.layers} for sets in dictionaries]
        )
        if not relative_error(self.before, self.nodes.preactivation.to(self.before)) <= tolerance(lens.dtype):
            raise ValueError(
                "agreement: the features of this graph are not what this model and set compute on its prompt; it is a "
                "graph of others"
            )

    def run(self, run: str, chosen: list[int]) -> RunAgreement:
        effects, changes = [], []
        for node in chosen:
            foretold, measured = self._foretold(run, node), self._measured(run, node)
            effects.append((foretold[0], measured[0]))
            later = self.nodes.depth > self.depth[node]
            changes.append((self._resolved(foretold[1][later]), self._resolved(measured[1][later])))
        wanted, got = (torch.stack(column) for column in zip(*effects, strict=True))
        unit = self.resolution(self.base.logits)
        wanted, got = (wanted / unit).round(), (got / unit).round()
        return RunAgreement(_or_none(spearman(wanted, got)), _or_none(_cosine(changes)), _or_none(_nmse(changes)))

    @staticmethod
    def resolution(values: Tensor) -> float:
        """What sums of that size and dtype can tell apart, with room for the rounding of many of them."""
        return 64 * torch.finfo(values.dtype).eps * float(values.abs().max())

    def _resolved(self, moved: Tensor) -> Tensor:
        """Changes of pre-activations, those that cannot be told from rounding as 0."""
        return torch.where(moved.abs() > self.resolution(self.before), moved, 0)

    def _holding(self, run: str, node: int) -> Collection[int]:
        """Layers held whole: up to a feature's own place, those that have all they write at or below it."""
        own = block_of(int(self.depth[node]) + 1)
        return range({"direct": self.lens.n_layers, "constrained": own, "unconstrained": 0}[run])

    def _foretold(self, run: str, node: int) -> tuple[Tensor, Tensor]:
        """Change of the margin (), and of every feature's pre-activation (n_features)."""
        change = (self.factor - 1) * float(self.graph.nodes.activation[node])
        moved = predicted(self.graph, node, change, self._holding(run, node))
        return self.weights @ moved, moved[self.features]

    def _measured(self, run: str, node: int) -> tuple[Tensor, Tensor]:
        at = self.graph.nodes
        layer, pos, feature, kind = (int(column[node]) for column in (at.layer, at.pos, at.feature, at.kind))
        place = Setting(layer, pos, feature, self.factor, relative=True, attention=kind == ATTENTION_FEATURE)
        freeze = None if run == "unconstrained" else "attention"
        hold = replace(held(self.lens, self.dictionaries, freeze, self._holding(run, node)), final_norm=run == "direct")
        wanted = placed(self.dictionaries, self.base.n_pos, [place])
        after = run_from(self.lens, self.dictionaries, self.base, wanted, hold)
        logits = self.lens.uncapped(after.logits.to(self.base.logits))  # edges explain logits before a soft cap
        margins = self.margin(torch.stack([self.base.logits, logits]))
        moved = self._preactivations([after.inputs, after.attention]) - self.before
        return (margins[1] - margins[0]).cpu().to(self.weights), moved.cpu().to(self.weights)

    def _preactivations(self, read: Sequence[dict[int, Tensor]]) -> Tensor:
        """Of every feature node of the graph, from what each kind of dictionaries reads, {layer: (T, d)}."""
        found = self.base.embed.new_zeros(len(self.features))
        for kind, sets, inputs in zip(FEATURES, self.dictionaries, read, strict=False):
            for layer, x in inputs.items():
                here = ((self.nodes.kind == kind) & (self.nodes.layer == layer)).nonzero()[:, 0]
                found[here] = sets[layer].preactivations(x, self.nodes.pos[here], self.nodes.feature[here]).to(found)
        return found


def _must_be_made_with(graph: Graph, dictionaries: Dictionaries, base: Trace) -> None:
    """Raises ValueError where attention is features in layers of the graph and in others of the test."""
    NodeSet.of(graph).must_fit(dictionaries, base)
    here = [i for sets in dictionaries[1:] for i in sets.layers]
    if (there := graph.meta.get("attention_layers", here)) != here:
        raise ValueError(
            f"agreement: this graph was made with autoencoders of attention at layers {there}, and here they are at "
            f"{here}; give the attention_saes that it was made with"
        )


def _cosine(changes: list[tuple[Tensor, Tensor]]) -> float:
    """Mean over pairs of which one at least is not zero."""
    cosines = [
        float(torch.cosine_similarity(a.double(), b.double(), dim=0)) if bool(a.any() and b.any()) else 0.0
        for a, b in changes
        if bool(a.any() or b.any())
    ]
    return sum(cosines) / len(cosines) if cosines else float("nan")


def _nmse(changes: list[tuple[Tensor, Tensor]]) -> float:
    foretold, measured = (torch.cat(column) for column in zip(*changes, strict=True))
    return float((foretold - measured).square().sum() / measured.square().sum())


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None  # nothing moved
