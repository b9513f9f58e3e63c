"""From tokens to a circuit one can look at: what `pullback demo` does, step by step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pullback._util.atomic import atomic_save
from pullback.attribution import Graph, attribute
from pullback.causal import Swap, between_group_share, interchange, swap_scores
from pullback.lens import Lens, as_lens
from pullback.studies.features import words
from pullback.training import evaluate
from pullback.transcoders import TranscoderSet
from pullback.zoo import tinymix
from pullback.zoo.tinymix import tasks

TRAINING_STEPS = 900
EVALUATION_BATCHES = 30
EVALUATION_SEED = 99  # the transcoders trained on other seeds
STATE_SHARE = 0.5  # a feature is a state feature if more than this share of its variance lies between states
N_PAIRS = 300
TOP = 16


@dataclass(frozen=True)
class Facts:
    """All two-hop prompts, "the capital of the state containing X is", one row each."""

    tokens: Tensor  # (48, T)
    state: Tensor  # (48) index of the state
    capital: Tensor  # (48) token id of the answer
    city_pos: int
    prompts: list[tasks.TwoHopPrompt]

    @property
    def last(self) -> int:
        return self.tokens.shape[1] - 1

    def row(self, city: str) -> int:
        cities = [p.city for p in self.prompts]
        if city not in cities:
            raise ValueError(f"tiny-mix does not know the city '{city}'; it knows {', '.join(cities)}")
        return cities.index(city)


def load_facts(lens: Lens) -> Facts:
    prompts = tasks.two_hop_prompts()
    states = sorted({p.state for p in prompts})
    return Facts(
        tokens=torch.stack([lens.to_tokens(p.prompt) for p in prompts]),
        state=torch.tensor([states.index(p.state) for p in prompts]),
        capital=torch.stack([lens.to_tokens(p.capital)[-1] for p in prompts]),
        city_pos=prompts[0].city_position,
        prompts=prompts,
    )


def run(
    out: str | Path,
    *,
    city: str = "dallas",
    source_city: str = "oakland",
    shipped: bool = False,
    steps: int = TRAINING_STEPS,
    seed: int = 0,
    verbose: bool = True,
) -> dict[str, Any]:
    """Train (or load) transcoders of tiny-mix, explain one answer, draw it, and test the explanation causally.

    Writes `graph.html` and `report.json` into `out`; returns the report. Raises ValueError for a city that the model
    does not know, and for two cities of one state.
    """
    say: Callable[[str], None] = print if verbose else lambda _line: None
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    lens = as_lens(tinymix.load())
    facts = load_facts(lens)
    base, source = facts.row(city), facts.row(source_city)
    if facts.state[base] == facts.state[source]:
        raise ValueError(
            f"{city} and {source_city} are of one state, so the answer would stay; name a source city of another"
        )
    say(f"tiny-mix: {lens.n_layers} layers, d_model {lens.d_model}, {lens.d_vocab} words")

    sets = _transcoders(lens, shipped, steps, seed, verbose)
    quality = evaluate(lens, sets, list(tasks.training_batches(EVALUATION_SEED, EVALUATION_BATCHES)))
    answers = evaluate(lens, sets, answered(EVALUATION_SEED))
    say(f"{quality.table()}\nat the answers of held-out prompts, all four MLPs replaced:\n{answers.arms()}")

    graph = attribute(lens, sets, facts.prompts[base].prompt)
    small = graph.prune()
    # The page's own slider starts at 0.8 and can be drawn further.
    graph.prune(0.95).to_html(out / "graph.html", pinned=_pins(small), labels=word_labels(lens, sets, small))
    scores = graph.scores()
    say(f"\n'{facts.prompts[base].prompt}' -> '{graph.meta['logit_labels'][0].strip()}'")
    say(f"graph: {graph.n_nodes} nodes, {graph.n_edges} edges; every target sums to {graph.check():.1e}")
    say(f"replacement score {scores.replacement:.3f}, completeness {scores.completeness:.3f}; pruned: {small}")

    state_features = between_state_features(lens, sets, facts)
    one = swap_one(lens, sets, facts, state_features, base, source)
    say(
        f"\nstate features of '{source_city}' in place of those of '{city}': "
        f"{one['before']} -> {one['after']} (expected {one['expected']})"
    )
    many = swap_many(lens, sets, facts, state_features, seed)
    for line in describe(many):
        say(line)

    report = {
        "fvu": list(quality.fvu.values()),
        "l0": list(quality.l0.values()),
        "dead": list(quality.dead.values()),
        "ce_recovered": answers.ce_recovered,
        "kl": answers.kl,
        "graph": graph_report(graph, small),
        "intervention": one,
        "interchange": many,
        "transcoders": "shipped" if shipped else f"trained for {steps} steps, seed {seed}",
        "seconds": round(time.perf_counter() - start, 1),
    }
    atomic_save(out / "report.json", json.dumps(report, indent=2))
    say(f"\nwrote {out / 'graph.html'} and {out / 'report.json'} after {report['seconds']:.0f} s")
    return report


def _transcoders(lens: Lens, shipped: bool, steps: int, seed: int, verbose: bool) -> TranscoderSet:
    from pullback.zoo.tinymix import transcoders

    return (
        transcoders.load_transcoders() if shipped else transcoders.train_transcoders(lens, seed, steps, verbose=verbose)
    )


def _pins(graph: Graph, n: int = 6) -> list[str]:
    """Ids of the most influential features, to start the page with."""
    return [f"{layer}_{feature}_{pos}" for layer, pos, feature in graph.top_features(n)]


def word_labels(lens: Lens, sets: TranscoderSet, graph: Graph, n: int = 2) -> dict[str, str]:
    """Names from the weights alone: the words a feature of layer 0 reads, the words any later feature writes."""
    labels = {}
    for layer, pos, feature in graph.top_features(graph.n_nodes):
        verb = "reads" if layer == 0 else "writes"
        found = words(lens, sets, layer, feature)[verb][:n]
        labels[f"{layer}_{feature}_{pos}"] = f"{verb} {', '.join(word.strip() for word in found)}"
    return labels


def graph_report(graph: Graph, small: Graph) -> dict[str, Any]:
    scores = graph.scores()
    return {
        "nodes": graph.n_nodes,
        "edges": graph.n_edges,
        "check_max_error": graph.check(),
        "replacement_score": scores.replacement,
        "completeness_score": scores.completeness,
        "pruned_nodes": small.n_nodes,
        "pruned_edges": small.n_edges,
        "pruned_check_max_error": small.check(),
    }


def answered(seed: int, n: int = 128) -> list[tuple[Tensor, Tensor]]:
    """Held-out prompts of every task with an answer put behind them, and a mask on just that step: elsewhere nothing
    announces the next token, and the model was not trained to guess it."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for task in tasks.TASKS:
        batch = tasks.evaluation_prompts(task, n, seed)
        rows = torch.arange(len(batch.tokens))
        last = torch.zeros_like(rows).scatter_reduce_(0, batch.rows, torch.arange(len(batch.rows)), "amax")
        at = batch.positions[last]
        tokens = torch.nn.functional.pad(batch.tokens, (0, 1), value=tasks.PAD_ID)
        tokens[rows, at + 1] = torch.multinomial(batch.targets[last], 1, generator=generator)[:, 0]
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        mask[rows, at] = mask[rows, at + 1] = True
        batches.append((tokens, mask))
    return batches


def between_state_features(lens: Lens, sets: TranscoderSet, facts: Facts, layer: int = 0) -> Tensor:
    """Mask (F) of a layer's features that tell states apart at the city token: a rule on features, not on answers."""
    x, _ = lens.mlp_io(facts.tokens, [layer], sets.hook_in(layer), sets.hook_out(layer))[layer]
    z = sets.encode(layer, x[:, facts.city_pos]).to_dense()
    return between_group_share(z, facts.state) > STATE_SHARE


def swap_one(
    lens: Lens, sets: TranscoderSet, facts: Facts, state_features: Tensor, base: int, source: int
) -> dict[str, Any]:
    """One pair, in words."""

    def word(token: Tensor) -> str:
        return lens.to_str_tokens(token)[0].strip()

    swap = Swap.features(0, facts.city_pos, state_features)
    after = interchange(lens, sets, facts.tokens[[base]], facts.tokens[[source]], [swap])[0].argmax()
    return {
        "prompt": facts.prompts[base].prompt,
        "source_prompt": facts.prompts[source].prompt,
        "before": word(lens.logits(facts.tokens[[base]])[0, -1].argmax()),
        "after": word(after),
        "expected": word(facts.capital[source]),
        "flipped": bool(after == facts.capital[source]),
        "features": int(state_features.sum()),
    }


def swap_many(lens: Lens, sets: TranscoderSet, facts: Facts, state_features: Tensor, seed: int) -> dict[str, Any]:
    """Rates over many ordered pairs of cities; what each means is in `describe`."""
    differ = facts.state[:, None] != facts.state[None]
    same = (facts.state[:, None] == facts.state[None]) & ~torch.eye(len(facts.state), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    pairs = differ.nonzero()
    base, source = pairs[torch.randperm(len(pairs), generator=generator)[:N_PAIRS]].T
    twin, other = same.nonzero().T

    def answers(rows: Tensor, given: Tensor, swaps: list[Swap]) -> Tensor:
        return interchange(lens, sets, facts.tokens[rows], facts.tokens[given], swaps).argmax(-1)

    def rate(answer: Tensor, wanted: Tensor) -> float:
        return float((answer == wanted).double().mean())

    state = [Swap.features(0, facts.city_pos, state_features)]
    rest = [Swap.features(0, facts.city_pos, ~state_features)]
    top, random = _sixteen(lens, sets, facts, base, source, generator)
    wanted = facts.capital[source]
    return {
        "pairs": len(base),
        "success_rate": rate(answers(base, source, state), wanted),
        "complement_rate": rate(answers(base, source, rest), wanted),
        "same_state_pairs": len(twin),
        "same_state_rate": rate(answers(twin, other, state), facts.capital[twin]),
        "top_features": TOP,
        "top_rate": rate(answers(base, source, top), wanted),
        "random_rate": rate(answers(base, source, random), wanted),
    }


def _sixteen(
    lens: Lens, sets: TranscoderSet, facts: Facts, base: Tensor, source: Tensor, generator: torch.Generator
) -> tuple[list[Swap], list[Swap]]:
    """For each pair, of all features active at the city or the last token: the 16 with the largest attribution to the
    change of answer, and 16 at random."""
    columns: list[tuple[Tensor, ...]] = []
    for pos in (facts.city_pos, facts.last):
        found = swap_scores(
            lens,
            sets,
            facts.tokens[base],
            facts.tokens[source],
            facts.capital[source],
            facts.capital[base],
            sets.layers,
            pos,
        )
        columns.append((*found, torch.full_like(found[0], pos)))
    pair, layer, feature, score, pos = (torch.cat([c[n] for c in columns]) for n in range(5))

    def first_sixteen(order_by: Tensor) -> list[Swap]:
        """The 16 smallest of each pair, as one swap per layer and position."""
        order = torch.argsort(order_by, stable=True)
        order = order[torch.argsort(pair[order], stable=True)]
        counts = torch.bincount(pair)
        starts = torch.cumsum(counts, 0) - counts
        rank = torch.arange(len(order)) - starts[pair[order]]
        chosen = order[rank < TOP]
        return [
            Swap.listed(i, p, pair[chosen][at], feature[chosen][at], sets[i].d_sae)
            for i in sets.layers
            for p in (facts.city_pos, facts.last)
            if bool((at := (layer[chosen] == i) & (pos[chosen] == p)).any())
        ]

    return first_sixteen(-score), first_sixteen(torch.rand(len(score), generator=generator))


def describe(rates: dict[str, Any]) -> list[str]:
    """The rates, as sentences."""
    return [
        f"over {rates['pairs']} ordered pairs of cities of different states, layer 0, city token:",
        f"  state features swapped     -> the other capital   {rates['success_rate']:6.1%}",
        f"  all other features swapped -> the other capital   {rates['complement_rate']:6.1%}",
        f"  state features of a city of the same state keep the answer {rates['same_state_rate']:6.1%} "
        f"({rates['same_state_pairs']} pairs)",
        f"at the city and the last token, all layers, {rates['top_features']} features swapped -> the other capital:",
        f"  those of largest attribution {rates['top_rate']:6.1%}, random active ones {rates['random_rate']:6.1%}",
    ]
