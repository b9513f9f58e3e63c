"""How each library is asked to train transcoders of all layers: by its own trainer, on the same tokens, with the same
batches, widths, k, learning rates and Adam.

Neither is asked to save, log or revive dead features (eai-sparsify's default). All else is as it comes: ours mixes rows
of many prompts and clips gradients; theirs does neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.whole.cases import Case, load

WARM_UP = {"F": 64, "k": 4}
Start = Callable[[], None]


@dataclass(frozen=True)
class Ready:
    """A library with its model open, having trained once for a step, so that nothing is left to import.

    Attributes:
        run: trains, calling its argument when weights are drawn and the first tokens are about to be used.
        fvu: of what it trained, for every layer, on as many prompts as a step has, taken evenly from those of the run.
    """

    run: Callable[[Start], None]
    fvu: Callable[[], list[float]]


def open_model(case: Case, folder: Path) -> Any:
    """As pullback is given it."""
    from pullback import zoo
    from pullback.lens.open import open_transformers

    return zoo.load(case.zoo) if case.zoo else open_transformers(str(folder / "model"))


def pullback(folder: Path) -> Ready:
    import pullback as pb

    case, tokens = load(folder)
    model = open_model(case, folder)
    N, d_sae, k = (case.shape[name] for name in ("N", "F", "k"))
    config = pb.TrainConfig(
        d_sae=d_sae,
        k=k,
        decoder_init="zero",  # as theirs
        training_tokens=tokens.numel(),
        train_batch_size_tokens=N,
        exclude_bos=False,
        exclude_padding=False,
        lr=case.lr,
        lr_warm_up_steps=0,
        adam_beta2=0.999,
        auxk_alpha=0.0,
    )
    trained = {}

    def run(start: Start) -> None:
        def batches() -> Iterator[Tensor]:
            start()
            yield from tokens.split(case.prompts)

        trained.update(pb.train(model, batches(), config, verbose=False).items())

    def fvu() -> list[float]:
        seen = pb.lens.as_lens(model).mlp_io(tokens[:: case.steps])
        return [
            _fvu(tc(x.flatten(0, 1)), y.flatten(0, 1))
            for tc, (x, y) in zip(trained.values(), seen.values(), strict=True)
        ]

    pb.train(
        model,
        tokens[: case.prompts],
        replace(config, d_sae=WARM_UP["F"], k=WARM_UP["k"], training_tokens=N),
        verbose=False,
    )
    return Ready(run, fvu)


def sparsify(folder: Path) -> Ready:
    from sparsify import SparseCoderConfig, TrainConfig, Trainer  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM

    case, tokens = load(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model")
    trained = {}

    def trainer(case: Case, tokens: Tensor) -> Any:
        settings = TrainConfig(
            SparseCoderConfig(num_latents=case.shape["F"], k=case.shape["k"], transcode=True),
            batch_size=case.prompts,
            optimizer="adam",
            lr=case.lr,
            lr_warmup_steps=0,
            hookpoints=["*.*.mlp"],
            log_to_wandb=False,
        )
        made = Trainer(settings, [{"input_ids": prompt} for prompt in tokens], model)
        made.save = lambda: None  # at the end of a run
        return made

    def run(start: Start) -> None:
        made = trainer(case, tokens)
        start()
        made.fit()
        trained.update(made.saes)

    def fvu() -> list[float]:
        found = []

        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            coder = trained[names[module]]
            found.append(_fvu(coder(inputs[0].flatten(0, 1)).sae_out, output.flatten(0, 1)))

        names = {module: name for name, module in model.base_model.named_modules() if name in trained}
        handles = [module.register_forward_hook(hook) for module in names]
        with torch.no_grad():
            model(tokens[:: case.steps])
        for handle in handles:
            handle.remove()
        return found

    trainer(replace(case, shape={**case.shape, **WARM_UP}), tokens[: case.prompts]).fit()
    return Ready(run, fvu)


TRAINERS: dict[str, Callable[[Path], Ready]] = {"pullback": pullback, "sparsify": sparsify}
PACKAGES = {"pullback": "pullback", "sparsify": "eai-sparsify"}


def _fvu(made: Tensor, y: Tensor) -> float:
    """The share of the variance of y Float[Tensor, 'n d'] that is unexplained."""
    y = y.double()
    return float((made.double() - y).square().sum() / (y - y.mean(0)).square().sum())
