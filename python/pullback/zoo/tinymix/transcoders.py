"""The transcoders that ship with tiny-mix: how they are trained, and what is true of them.

Truth is checked by interchange. A feature of layer 0 at the city token is a *state feature* when more than half of its
variance over the 48 two-hop prompts lies between states (eta squared > 0.5), a rule that looks at features only and at
no answer. Take the state features of city B into the prompt of city A, and the model answers B's capital; take all the
other features, and it keeps A's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pullback._util.statistics import between_group_share
from pullback.zoo.tinymix import evaluate, tasks
from pullback.zoo.tinymix.files import DATA, TRANSCODERS, load_lean
from pullback.zoo.tinymix.lean import LeanModel, Patch

if TYPE_CHECKING:
    from pullback.training import TrainConfig
    from pullback.transcoders import TranscoderSet

N_STEPS = 2000
TOKENS_PER_STEP = 1024
N_STATES, N_CITIES = 12, 48

# What shipped transcoders must reach. FVU and dead share are bounds from above, of every layer.
LARGEST_FVU, LARGEST_DEAD = 0.15, 0.05
LEAST_AGREEMENT = {"ioi": 0.95, "brackets": 0.95, "two_hop": 0.95, "greater_than": 0.95, "induction": 0.90}
LEAST_INTERCHANGE = {"state": 0.95, "same_state_kept": 0.98, "top16": 0.95}
LARGEST_INTERCHANGE = {"complement": 0.05}


def config(steps: int = N_STEPS, seed: int = 0) -> TrainConfig:
    """The settings of the shipped set: 1024 features a layer, 16 of them active on a token.

    <bos> is trained on, unlike in large models: its MLP outputs are no outliers here, and a set that never saw it makes
    an error at position 0 that can change the answer for a held-out city.
    """
    from pullback.training import TrainConfig

    return TrainConfig(
        d_sae=1024,
        k=16,
        lr=2e-3,
        lr_warm_up_steps=50,
        training_tokens=steps * TOKENS_PER_STEP,
        train_batch_size_tokens=TOKENS_PER_STEP,
        seed=seed,
        exclude_bos=False,
    )


def train_transcoders(model: Any, seed: int = 0, steps: int = N_STEPS, *, verbose: bool = True) -> TranscoderSet:
    """One transcoder a layer, all four from the same forward passes over the training side of every task."""
    from pullback.training import train

    batches = tasks.training_batches(seed + 1, include_bos=True)
    return cast("TranscoderSet", train(model, batches, config(steps, seed), verbose=verbose))


def load_transcoders(folder: str | Path = DATA) -> TranscoderSet:
    """The shipped set, float32 in memory. Raises FileNotFoundError when `folder` has none."""
    from pullback.transcoders import load_transcoders

    return cast("TranscoderSet", load_transcoders(Path(folder) / TRANSCODERS))


# Figures --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def agreement(model: Any, sets: TranscoderSet, n: int = 512, seed: int = 5) -> dict[str, float]:
    """Every MLP replaced at once: share of answers (mean over rows) that stay the same token as the model's.

    For greater-than, whose target is nearly uniform and whose argmax means nothing: the mass on later years.
    """
    from pullback.lens import as_lens

    lens, result = as_lens(model), {}
    for task in tasks.TASKS:
        batch = tasks.evaluation_prompts(task, n, seed)
        with lens.replace(sets):
            replaced = lens.logits(batch.tokens)
        if not evaluate.is_soft(batch):
            own = lens.logits(batch.tokens)[batch.rows, batch.positions].argmax(-1)
            batch = tasks.Batch(batch.tokens, batch.mask, batch.rows, batch.positions, tasks.one_hot(own))
        result[task] = evaluate.score(replaced, batch)
    return result


@torch.no_grad()
def city_features(model: Any, sets: TranscoderSet, layer: int = 0) -> Tensor:
    """Float[Tensor, '48 F']: features of `layer` at the city token of every two-hop prompt."""
    from pullback.lens import as_lens

    tokens, city, _ = evaluate.two_hop_tokens()
    x, _ = as_lens(model).mlp_io(tokens, [layer], sets.hook_in(layer), sets.hook_out(layer))[layer]
    return sets.encode(layer, x[:, city]).to_dense()


def eta_squared(features: Tensor) -> Tensor:
    """Float[Tensor, 'F']: between-state share of the variance of features (48, F), rows in order of the prompts."""
    return between_group_share(features.double(), torch.arange(N_CITIES) // (N_CITIES // N_STATES)).float()


def state_features(model: Any, sets: TranscoderSet) -> Tensor:
    """Ids of the layer-0 features that carry the state at the city token, ascending."""
    return (eta_squared(city_features(model, sets)) > 0.5).nonzero().flatten()


def share(given: Tensor, wanted: Tensor) -> float:
    """Share of equal entries."""
    return float((given == wanted).double().mean())


@torch.no_grad()
def interchange(model: Any, sets: TranscoderSet, lean: LeanModel, n: int = 400, seed: int = 0) -> dict[str, float]:
    """Answers after layer-0 features at A's city are set to B's, everything above recomputed by the model itself.

    Share that answers B's capital when the swapped features are the state features ("state"), all the others
    ("complement"), or the 16 that differ most by |f_B - f_A| times decoder norm ("top16"); and share that keeps A's
    capital when B is a city of the same state ("same_state_kept").
    """
    tokens, city, capitals = evaluate.two_hop_tokens()
    features, decoder = city_features(model, sets), sets[0].W_dec.detach()
    own = lean.mlp_output(tokens, 0, torch.full((N_CITIES,), city))
    carries_state = eta_squared(features) > 0.5

    def answers(base: Tensor, source: Tensor, chosen: Tensor) -> Tensor:
        change = ((features[source] - features[base]) * chosen) @ decoder
        patch = Patch(0, torch.full((len(base),), city), own[base] + change)
        return lean(tokens[base], patch)[:, -1].argmax(-1)

    base, source = torch.tensor(evaluate.interchange_pairs(n, seed)).T
    difference = (features[source] - features[base]).abs() * decoder.norm(dim=1)
    largest = torch.zeros_like(difference).scatter(1, difference.topk(16, dim=1).indices, 1.0)
    cities = torch.arange(N_CITIES)
    per_state = N_CITIES // N_STATES
    neighbour = cities // per_state * per_state + (cities + 1) % per_state
    return {
        "state": share(answers(base, source, carries_state), capitals[source]),
        "complement": share(answers(base, source, ~carries_state), capitals[source]),
        "top16": share(answers(base, source, largest), capitals[source]),
        "same_state_kept": share(answers(cities, neighbour, carries_state), capitals),
        "n_state_features": int(carries_state.sum()),
    }


def figures(
    model: Any, sets: TranscoderSet, folder: str | Path = DATA, *, n_prompts: int = 512, n_batches: int = 30
) -> dict[str, Any]:
    """Reconstruction per layer, agreement under full replacement, interchange and state features, as plain numbers.

    `n_prompts` of every task measure agreement; `n_batches` of about 1,100 fresh tokens measure reconstruction.
    """
    from pullback.training import evaluate as measure

    report = measure(model, sets, list(tasks.training_batches(seed=99, n_batches=n_batches)))
    return {
        "fvu": rounded(report.fvu),
        "dead": rounded(report.dead),
        "l0": rounded(report.l0),
        "agreement": rounded(agreement(model, sets, n_prompts)),
        "interchange": rounded(interchange(model, sets, load_lean(folder))),
        "state_features": state_features(model, sets).tolist(),
    }


def rounded(table: Mapping[Any, float]) -> dict[str, float]:
    return {str(key): round(value, 4) for key, value in table.items()}


def shortfalls(measured: dict[str, Any]) -> list[str]:
    """Sentences for figures that are not good enough to ship; empty when all are."""
    found = [
        (table, name, value, measured[table][name] <= value if upper else measured[table][name] >= value, upper)
        for table, bounds, upper in (
            ("fvu", dict.fromkeys(measured["fvu"], LARGEST_FVU), True),
            ("dead", dict.fromkeys(measured["dead"], LARGEST_DEAD), True),
            ("agreement", LEAST_AGREEMENT, False),
            ("interchange", LEAST_INTERCHANGE, False),
            ("interchange", LARGEST_INTERCHANGE, True),
        )
        for name, value in bounds.items()
    ]
    return [
        f"{table} of {name} is {measured[table][name]:.4f}, at {'most' if upper else 'least'} {bound} is required"
        for table, name, bound, good, upper in found
        if not good
    ]
