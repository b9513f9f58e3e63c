"""Held-out figures of tiny-mix: five accuracies and the interchange check.

Every function takes `logits_of`: tokens (B, T) -> logits (B, T, d_vocab), so the lean model, a TransformerLens model
and a model with its MLPs replaced by transcoders are measured alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from pullback.zoo.tinymix import tasks
from pullback.zoo.tinymix.lean import LeanModel, Patch
from pullback.zoo.tinymix.vocab import CAPITALS, IDS

LogitsOf = Callable[[Tensor], Tensor]

# The least a shipped model may reach on held-out prompts.
REQUIRED = {
    "greater_than": 0.97,
    "ioi": 0.98,
    "induction": 0.95,
    "brackets": 0.97,
    "two_hop": 0.98,
    "one_hop": 1.0,
    "interchange_mlp0_city": 0.99,
}


@torch.no_grad()
def score(logits: Tensor, batch: tasks.Batch) -> float:
    """Mean over rows of the mean over their answers.

    Greater-than: probability on later years over probability on two-digit tokens. Else: 1 where the answer is the
    argmax.
    """
    at_answer = logits[batch.rows, batch.positions]
    if is_soft(batch):
        probs = at_answer.double().softmax(-1)
        per_answer = (probs * (batch.targets > 0)).sum(-1) / probs[:, tasks.YEAR_IDS].sum(-1)
    else:
        per_answer = (at_answer.argmax(-1) == batch.answers).double()
    weights = batch.weights().double()
    return float((weights * per_answer).sum() / weights.sum())


def is_soft(batch: tasks.Batch) -> bool:
    return bool((batch.targets.max(-1).values < 1).any())


@torch.no_grad()
def held_out_scores(logits_of: LogitsOf, n: int = 512, seed: int = 1) -> dict[str, float]:
    """`score` on n fresh held-out prompts of every task."""
    scores = {}
    for task in tasks.TASKS:
        batch = tasks.evaluation_prompts(task, n, seed)
        scores[task] = score(logits_of(batch.tokens), batch)
    return scores


def interchange_pairs(n: int | None = None, seed: int = 0) -> list[tuple[int, int]]:
    """Ordered pairs (a, b) of indices into `tasks.two_hop_prompts()` with different states: all 2112, or n of them."""
    cities = tasks.ALL_CITIES
    pairs = [(a, b) for a, b in itertools.permutations(range(len(cities)), 2) if cities[a].state != cities[b].state]
    if n is None:
        return pairs
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:n].tolist()
    return [pairs[i] for i in order]


def two_hop_tokens() -> tuple[Tensor, int, Tensor]:
    """The 48 two-hop prompts: tokens (48, 9) with <bos>, the city's position, the capitals' ids (48)."""
    prompts = tasks.two_hop_prompts()
    tokens = torch.tensor([[tasks.BOS_ID, *(IDS[word] for word in prompt.prompt.split())] for prompt in prompts])
    return tokens, prompts[0].city_position, torch.tensor([IDS[prompt.capital] for prompt in prompts])


@torch.no_grad()
def interchange(model: LeanModel, layer: int = 0, n: int | None = 400, seed: int = 0) -> float:
    """Share of pairs that answer b's capital when the MLP output of `layer` at a's city comes from b."""
    tokens, city, capitals = two_hop_tokens()
    base, source = torch.tensor(interchange_pairs(n, seed)).T
    position = torch.full((len(tokens),), city)
    value = model.mlp_output(tokens, layer, position)
    logits = model(tokens[base], Patch(layer, position[base], value[source]))
    return float((logits[:, -1].argmax(-1) == capitals[source]).double().mean())


@torch.no_grad()
def figures(model: LeanModel, n: int = 512, seed: int = 1) -> dict[str, float]:
    """All figures of the model: held-out scores, interchange at each layer's MLP, two-hop over all 48 cities."""
    tokens, _, capitals = two_hop_tokens()
    logits = model(tokens)[:, -1]
    result = held_out_scores(model, n, seed)
    result["two_hop_all_cities"] = float((logits.argmax(-1) == capitals).double().mean())
    for layer in range(model.shape.n_layers):
        result[f"interchange_mlp{layer}_city"] = interchange(model, layer)
    capital_ids = torch.tensor([IDS[capital] for capital in CAPITALS])
    result["two_hop_capital_probability"] = float(logits.softmax(-1)[:, capital_ids].sum(-1).mean())
    return {name: round(value, 4) for name, value in result.items()}


def shortfalls(measured: dict[str, float]) -> list[str]:
    """Sentences for figures below `REQUIRED`; empty when the model may ship."""
    return [
        f"{name} is {measured[name]:.4f}, at least {least} is required"
        for name, least in REQUIRED.items()
        if measured[name] < least
    ]
