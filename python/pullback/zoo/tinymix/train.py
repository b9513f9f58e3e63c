"""The recipe of tiny-mix: five tasks, one interchange term, 900 steps, about three minutes on one CPU thread.

    loss = sum_b w_b * mean_a CE(answer a of row b) / B + 0.3 * interchange

The interchange term is what makes the story of the model true. Trained on the tasks alone, a model of this size
copies the city embedding to the last position and looks the capital up there; no MLP ever computes the state at the
city. So 32 pairs a step run a base prompt with the layer-0 MLP output at its city token replaced by the one of a
source prompt, and are asked for the base's question about the source's city. Base and source differ in template,
which keeps the swapped vector a state (usable by every reader) rather than a template-specific code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from pullback._util.atomic import atomic_path
from pullback.zoo.tinymix import tasks
from pullback.zoo.tinymix.lean import LeanModel, Patch, initialise
from pullback.zoo.tinymix.vocab import IDS


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters. Row counts are per step; `lr` is shared by Muon (block matrices) and AdamW (the rest)."""

    steps: int = 900
    lr: float = 3e-3
    warm_up_steps: int = 100
    final_lr_share: float = 0.02
    weight_decay: float = 0.05
    muon_momentum: float = 0.95
    adam_betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    n_hops: int = 16
    n_ioi: int = 12
    n_greater_than: int = 16
    n_induction: int = 20
    n_brackets: int = 12
    induction_weight: float = 2.0
    n_interchange: int = 32
    interchange_weight: float = 0.3
    two_hop_base_share: float = 0.7
    two_hop_source_share: float = 0.5


@dataclass(frozen=True)
class Interchange:
    """Prompt pairs of the interchange term: tokens (P, T), the city's position and the position to answer (P)."""

    base: Tensor
    base_city: Tensor
    last: Tensor
    source: Tensor
    source_city: Tensor
    wanted: Tensor


def sample_interchange(recipe: Recipe, generator: torch.Generator) -> Interchange:
    """Pairs of different cities, each in a two-hop or an "X is in" prompt.

    A held-out city appears only where neither prompt is two-hop, so that its two-hop answer is never trained.
    """
    n = recipe.n_interchange
    coins = torch.rand(n, 2, generator=generator)
    base_two_hop = (coins[:, 0] < recipe.two_hop_base_share).tolist()
    source_two_hop = (coins[:, 1] < recipe.two_hop_source_share).tolist()
    bases, sources, wanted = [], [], []
    for base_hops, source_hops in zip(base_two_hop, source_two_hop, strict=True):
        cities = tasks.TRAINED_CITIES if base_hops or source_hops else tasks.ALL_CITIES
        one, two = torch.randperm(len(cities), generator=generator)[:2].tolist()
        bases.append(city_prompt(cities[one].name, base_hops))
        sources.append(city_prompt(cities[two].name, source_hops))
        wanted.append(IDS[cities[two].capital if base_hops else cities[two].state])
    base, base_city, last = pad(bases)
    source, source_city, _ = pad(sources)
    return Interchange(base, base_city, last, source, source_city, torch.tensor(wanted))


def city_prompt(city: str, two_hop: bool) -> tuple[list[int], int]:
    """Token ids with <bos>, and the position of the city among them."""
    words = (tasks.two_hop_text(city) if two_hop else tasks.located_text(city)).split()
    return [tasks.BOS_ID, *(IDS[word] for word in words)], 1 + words.index(city)


def pad(prompts: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded tokens, city positions, last positions."""
    tokens = tasks.stack_tokens([torch.tensor([prompt]) for prompt, _ in prompts])
    last = torch.tensor([len(prompt) - 1 for prompt, _ in prompts])
    return tokens, torch.tensor([city for _, city in prompts]), last


def cross_entropy(logits: Tensor, batch: tasks.Batch) -> Tensor:
    """Sum over rows of the mean cross-entropy of their answers. logits (B, T, V)."""
    log_probs = logits[batch.rows, batch.positions].log_softmax(-1)
    return -(batch.weights() * (batch.targets * log_probs).sum(-1)).sum()


def task_loss(model: LeanModel, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Mean over rows of the task losses: short prompts and long ones in a forward pass each, to spare padding."""
    short = tasks.concatenate(
        [
            tasks.hops(recipe.n_hops, generator),
            tasks.ioi(recipe.n_ioi, generator),
            tasks.greater_than(recipe.n_greater_than, generator),
        ]
    )
    lists, nested = tasks.induction(recipe.n_induction, generator), tasks.brackets(recipe.n_brackets, generator)
    long = tasks.concatenate([lists, nested])
    long_logits = model(long.tokens)
    n_rows = len(short.tokens) + len(long.tokens)
    total = (
        cross_entropy(model(short.tokens), short)
        + recipe.induction_weight * cross_entropy(long_logits[: recipe.n_induction], lists)
        + cross_entropy(long_logits[recipe.n_induction :], nested)
    )
    return total / n_rows


def interchange_loss(model: LeanModel, pairs: Interchange) -> Tensor:
    """Mean cross-entropy of the source's answer when the base runs with the source's MLP 0 output at its city."""
    patch = Patch(0, pairs.base_city, model.mlp_output(pairs.source, 0, pairs.source_city))
    logits = model(pairs.base, patch)
    return torch.nn.functional.cross_entropy(logits[torch.arange(len(pairs.base)), pairs.last], pairs.wanted)


def optimisers(model: LeanModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon on the matrices inside blocks, AdamW on embedding, head and biases (biases without decay)."""
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"training tiny-mix needs torch.optim.Muon (torch 2.9), this is torch {torch.__version__}")
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    tables = [model.tok_embed.weight, model.head.weight]
    biases = [p for p in model.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(
        matrices,
        lr=recipe.lr,
        momentum=recipe.muon_momentum,
        weight_decay=recipe.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    groups = [{"params": tables, "weight_decay": recipe.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    return [muon, torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.adam_betas)]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then linear decay to `final_lr_share` at the last step."""
    if step < recipe.warm_up_steps:
        return recipe.lr * (step + 1) / recipe.warm_up_steps
    progress = (step - recipe.warm_up_steps) / max(1, recipe.steps - 1 - recipe.warm_up_steps)
    return recipe.lr * (1 - (1 - recipe.final_lr_share) * progress)


class Trainer:
    """One run of the recipe: model, optimisers and the generator that draws both weights and batches."""

    def __init__(self, recipe: Recipe | None = None, seed: int = 0) -> None:
        self.recipe, self.seed, self.done = recipe or Recipe(), seed, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.model = LeanModel()
        initialise(self.model, self.generator)
        self.optimisers = optimisers(self.model, self.recipe)

    def step(self) -> dict[str, float]:
        """One optimisation step; the losses it saw."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(self.recipe, self.done)
            optimiser.zero_grad(set_to_none=True)
        task = task_loss(self.model, self.recipe, self.generator)
        swap = interchange_loss(self.model, sample_interchange(self.recipe, self.generator))
        (task + self.recipe.interchange_weight * swap).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimiser in self.optimisers:
            optimiser.step()
        self.done += 1
        return {"task": float(task.detach()), "interchange": float(swap.detach())}

    def identity(self) -> dict:
        """What a checkpoint must agree on to be continued."""
        return {"recipe": asdict(self.recipe), "seed": self.seed, "shape": self.model.shape.to_dict()}

    def save(self, path: Path) -> None:
        """Write a checkpoint; a crash half-way leaves the previous one intact."""
        state = {
            **self.identity(),
            "done": self.done,
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "generator": self.generator.get_state(),
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same recipe and seed. Raises ValueError when it is of another run."""
        state = torch.load(path, weights_only=True)
        theirs = {key: state[key] for key in self.identity()}
        if theirs != self.identity():
            raise ValueError(f"{path} is a checkpoint of another run ({theirs}); delete it or train elsewhere")
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        self.done = state["done"]


def train(
    recipe: Recipe | None = None,
    seed: int = 0,
    *,
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    verbose: bool = True,
) -> LeanModel:
    """Train tiny-mix on the threads torch is set to (the same count gives the same bits) and return the lean model.

    With `checkpoint`, the run continues from that file if it exists and removes it when finished.
    """
    from tqdm.auto import tqdm

    trainer = Trainer(recipe, seed)
    if checkpoint is not None and checkpoint.exists():
        trainer.resume(checkpoint)
    bar = tqdm(total=trainer.recipe.steps, initial=trainer.done, desc="tiny-mix", disable=not verbose)
    while trainer.done < trainer.recipe.steps:
        losses = trainer.step()
        bar.update()
        if trainer.done % 10 == 0:
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)
        if checkpoint is not None and trainer.done % checkpoint_every == 0:
            trainer.save(checkpoint)
    bar.close()
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return trainer.model
