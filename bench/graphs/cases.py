"""Random models of the shape of GPT-2, and dictionaries of which so many features are active."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.interop.models import random_model
from pullback.lens import Lens, as_lens
from pullback.transcoders import JumpReLU, Transcoder, TranscoderSet


@dataclass(frozen=True)
class Case:
    """One graph.

    Attributes:
        name: as in tables.
        shape: T tokens, L layers of width d with H heads, F features a layer of which k are active at a position, V
            tokens in the vocabulary, and M features kept by influence.
    """

    name: str
    shape: Mapping[str, int]

    @property
    def config(self) -> dict[str, Any]:
        """Of the model, as TransformerLens reads it."""
        s = self.shape
        sizes = {"n_layers": s["L"], "d_model": s["d"], "n_heads": s["H"], "d_head": s["d"] // s["H"]}
        rest = {"d_mlp": 4 * s["d"], "n_ctx": s["T"], "d_vocab": s["V"], "seed": 0, "act_fn": "gelu"}
        return sizes | rest | {"normalization_type": "LN", "positional_embedding_type": "standard"}

    @property
    def settings(self) -> dict[str, Any]:
        """Of attribution, in the names that both use."""
        return {"batch_size": 64, "max_feature_nodes": self.shape["M"], "update_interval": 4}


CASES = {
    "smoke": Case("smoke", {"T": 8, "L": 2, "d": 32, "H": 2, "F": 128, "k": 4, "V": 64, "M": 32}),
    "small": Case("small", {"T": 64, "L": 6, "d": 256, "H": 8, "F": 4096, "k": 40, "V": 258, "M": 4096}),
    "GPT-2 small": Case(
        "GPT-2 small", {"T": 64, "L": 12, "d": 768, "H": 12, "F": 24576, "k": 40, "V": 50257, "M": 1024}
    ),
}


def write(case: Case, folder: Path) -> None:
    """Put what both are given into a folder."""
    model = random_model(case.config)
    lens = as_lens(model)
    generator = torch.Generator().manual_seed(2)
    prompt = torch.randint(1, case.shape["V"], (case.shape["T"],), generator=generator)
    prompt[0] = 0  # BOS
    (folder / "model").mkdir()
    weights = {name: value.detach().contiguous() for name, value in model.tl_named_parameters()}
    save_file(weights, folder / "model/weights.safetensors")
    dictionaries(lens, prompt, case).save(folder / "transcoders", "pullback")
    about = asdict(case) | {"config": case.config, "settings": case.settings, "prompt": prompt.tolist()}
    (folder / "case.json").write_text(json.dumps(about))


@torch.no_grad()
def dictionaries(lens: Lens, prompt: torch.Tensor, case: Case) -> TranscoderSet:
    """Random directions, with the threshold that k of F features of a layer pass at a position, on average."""
    d, F, k = (case.shape[name] for name in ("d", "F", "k"))
    generator = torch.Generator().manual_seed(1)
    sets = {}
    for layer, (x, _) in lens.mlp_io(prompt[None]).items():
        W_enc, W_dec = (torch.randn(F, d, generator=generator) / d**0.5 for _ in range(2))
        h = (x[0] @ W_enc.T).flatten()
        theta = h.topk(k * len(prompt) + 1).values[-2:].mean().expand(F).clone()
        zeros = torch.zeros(F), torch.zeros(d)
        sets[layer] = Transcoder(
            W_enc, zeros[0], 0.1 * W_dec, zeros[1], activation=JumpReLU(theta), reading=lens.reading(layer)
        )
    return TranscoderSet(sets)


def load_model(about: Mapping[str, Any]) -> Any:
    """The same random weights again."""
    return random_model(about["config"])
