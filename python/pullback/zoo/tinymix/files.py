"""tiny-mix from its shipped files: the TransformerLens model, and the lean twin that was trained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pullback._util.atomic import atomic_save
from pullback.zoo.tinymix.lean import LeanModel, ModelShape
from pullback.zoo.tinymix.vocab import WORDS

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DATA = Path(__file__).resolve().parent.parent / "data" / "tiny-mix"
WEIGHTS, VOCABULARY, FIGURES = "model.safetensors", "vocab.json", "figures.json"
TRANSCODERS, TRANSCODER_FIGURES = "transcoders", "transcoder_figures.json"
ATTENTION_SAES = "attention_saes"


def load(
    folder: str | Path = DATA, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> TransformerBridge:
    """tiny-mix as a TransformerLens model with its tokenizer, offline.

    Exact: logits equal those of `load_lean` up to rounding. The caller's random state is left as it was.
    Raises ValueError when a file is missing or does not fit, ImportError without transformer_lens 4.x.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    from pullback.zoo.tinymix.tokenizer import build_tokenizer

    shape, words = ModelShape(), load_words(folder)
    config = TransformerBridgeConfig(
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        n_heads=shape.n_heads,
        d_head=shape.d_head,
        d_mlp=shape.d_mlp,
        n_ctx=shape.n_ctx,
        d_vocab=shape.d_vocab,
        eps=shape.eps,
        act_fn="relu",
        normalization_type="LNPre",
        positional_embedding_type="rotary",
        rotary_dim=shape.d_head,
        rotary_base=shape.rotary_base,
        init_weights=False,
    )
    with torch.random.fork_rng(devices=[]):
        # transformer_lens 4.x attaches boot_native while it is imported, where a type checker cannot see it.
        model = TransformerBridge.boot_native(  # pyright: ignore[reportAttributeAccessIssue]
            config, tokenizer=build_tokenizer(words, shape.n_ctx), dtype=dtype, device=device, model_name="tiny-mix"
        )
    # Not strict: the bridge also lists aliases and biases that this model lacks. `read_weights` has checked the names.
    weights = {name: value.to(dtype) for name, value in read_weights(folder).items()}
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"this transformer_lens does not know {unexpected}; tiny-mix was made for version 4.3")
    return model.eval()


def load_lean(folder: str | Path = DATA, *, dtype: torch.dtype = torch.float32) -> LeanModel:
    """The lean twin of `load` without hooks: what training and `figures.json` use."""
    weights = read_weights(folder)
    model = LeanModel()
    model.load_state_dict(weights)
    return model.to(dtype).eval().requires_grad_(False)


def save(model: LeanModel, measured: dict[str, float], about: dict[str, Any], folder: str | Path) -> Path:
    """Write weights, words and figures (with the weights' hash and `about`, the run) into `folder`."""
    from safetensors.torch import save as to_bytes

    folder = Path(folder)
    weights = {name: value.detach().float().contiguous() for name, value in model.state_dict().items()}
    payload = to_bytes(weights, metadata={"model": "tiny-mix", "shape": json.dumps(model.shape.to_dict())})
    figures = {"figures": measured, **about, "weights_sha256": hashlib.sha256(payload).hexdigest()}
    atomic_save(folder / WEIGHTS, payload)
    atomic_save(folder / VOCABULARY, json.dumps(WORDS, indent=0) + "\n")
    atomic_save(folder / FIGURES, json.dumps(figures, indent=2) + "\n")
    return folder


def save_transcoder_figures(measured: dict[str, Any], about: dict[str, Any], folder: str | Path) -> None:
    """Write what was measured, the run, and the hashes of the transcoder files and of the model they belong to."""
    folder = Path(folder)
    hashes = {path.name: sha256(path) for path in sorted((folder / TRANSCODERS).glob("*.safetensors"))}
    figures = {**measured, **about, "model_sha256": sha256(folder / WEIGHTS), "weights_sha256": hashes}
    atomic_save(folder / TRANSCODER_FIGURES, json.dumps(figures, indent=2) + "\n")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_weights(folder: str | Path = DATA) -> dict[str, torch.Tensor]:
    """The state dict of `LeanModel`, float32. Raises ValueError when a name or shape is not the model's."""
    from safetensors.torch import load_file

    path = present(folder, WEIGHTS)
    weights = load_file(path)
    found = {name: tuple(value.shape) for name, value in weights.items()}
    expected = {name: tuple(value.shape) for name, value in LeanModel().state_dict().items()}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{path} is not tiny-mix: {name} must be {expected.get(name, 'absent')}, got {found.get(name, 'nothing')}"
            f" ({len(wrong)} such names); remake it with `python -m pullback.zoo.make tiny-mix`"
        )
    return weights


def load_words(folder: str | Path = DATA) -> list[str]:
    """The vocabulary in id order."""
    words = json.loads(present(folder, VOCABULARY).read_text())
    if len(words) != ModelShape().d_vocab:
        raise ValueError(
            f"{folder}/{VOCABULARY} has {len(words)} words, the model has {ModelShape().d_vocab}: the files do not "
            "belong together; remake them with `python -m pullback.zoo.make tiny-mix`"
        )
    return words


def load_figures(folder: str | Path = DATA) -> dict[str, Any]:
    """`figures.json`: held-out figures, recipe, seed, versions and the SHA-256 of the weights file."""
    return json.loads(present(folder, FIGURES).read_text())


def load_transcoder_figures(folder: str | Path = DATA) -> dict[str, Any]:
    """What `save_transcoder_figures` wrote: FVU, dead share and l0 by layer, agreement, interchange, hashes."""
    return json.loads(present(folder, TRANSCODER_FIGURES).read_text())


def present(folder: str | Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.exists():
        raise ValueError(f"{path} does not exist; make it with `python -m pullback.zoo.make tiny-mix --out {folder}`")
    return path
