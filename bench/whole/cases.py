"""The models that are trained on, and the settings that all trainers share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One model and one run on it.

    Attributes:
        name: as in tables.
        shape: N tokens of a step in prompts of T tokens, model width d, F features of a dictionary, k active ones, L
            layers, all of them trained.
        steps: optimisation steps of a run; each takes the rows of one forward pass.
        lr: learning rate of Adam, which falls linearly to zero.
        rounds: runs of every library.
        zoo: the model of the zoo that it is, and that pullback is given; None where everyone opens the same files.
    """

    name: str
    shape: Mapping[str, int]
    steps: int
    lr: float
    rounds: int
    zoo: str | None = None

    @property
    def prompts(self) -> int:
        """Those of one step."""
        return self.shape["N"] // self.shape["T"]

    def about(self, op: str, provider: str) -> dict[str, Any]:
        """What a row of results says of it."""
        row = {"kind": "row", "op": op, "label": self.name, "shape": dict(self.shape), "dtype": "float32"}
        return row | {"data": "normal", "provider": provider, "role": "op"}


TINY_MIX = {"N": 1024, "T": 32, "d": 128, "F": 1024, "k": 16, "L": 4}
GPT2_SMALL = {"N": 1024, "T": 256, "d": 768, "F": 24576, "k": 32, "L": 12}
VOCABULARY = 50257  # of GPT-2
# The learning rates are those that sparsify would choose: 2e-4 / sqrt(F / 2^14).
CASES = {
    "smoke": (
        Case("tiny-mix", {**TINY_MIX, "N": 256, "F": 256}, steps=20, lr=8e-4, rounds=1, zoo="tiny-mix"),
        Case("GPT-2", {"N": 64, "T": 16, "d": 32, "F": 128, "k": 4, "L": 2}, steps=3, lr=1e-4, rounds=1),
    ),
    "whole": (
        Case("tiny-mix", TINY_MIX, steps=200, lr=8e-4, rounds=5, zoo="tiny-mix"),
        Case("GPT-2 small", GPT2_SMALL, steps=8, lr=1.633e-4, rounds=3),
    ),
}


def prepare(case: Case, folder: Path) -> None:
    """Put what every trainer is given into a folder: the model, the tokens, the case."""
    if case.zoo is None:
        _random_gpt2(case, folder)
        size = case.steps * case.prompts, case.shape["T"]
        tokens = torch.randint(VOCABULARY, size, generator=torch.Generator().manual_seed(1))
    else:
        from bench.whole import twin

        twin.save(folder / "model")
        tokens = twin.tokens(case.steps * case.prompts, case.shape["T"])
    torch.save(tokens, folder / "tokens.pt")
    (folder / "case.json").write_text(json.dumps(asdict(case)))


def load(folder: Path) -> tuple[Case, Tensor]:
    """The case, and its tokens Int64[Tensor, 'n T'], those of one step after the other."""
    return Case(**json.loads((folder / "case.json").read_text())), torch.load(folder / "tokens.pt")


def _random_gpt2(case: Case, folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    width, layers = case.shape["d"], case.shape["L"]
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=max(2, width // 64))
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
