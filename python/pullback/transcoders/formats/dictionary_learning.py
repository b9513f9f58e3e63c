"""dictionary_learning's TopK autoencoders (`ae.pt` and `config.json`), read only.

encoder.weight (F, d), encoder.bias (F), decoder.weight (d, F): the other way round than anybody else's, b_dec (d), and
k; f = topk(relu((x - b_dec) W_enc^T + b_enc)). `b_dec` is subtracted from the input too, which is folded away.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pullback.transcoders.activations import TopK
from pullback.transcoders.formats.build import Options, build, one_per_layer
from pullback.transcoders.formats.files import folders_with, read_json, read_pickle
from pullback.transcoders.formats.tables import DICTIONARY_LEARNING, from_table
from pullback.transcoders.sets import TranscoderSet
from pullback.transcoders.transcoder import Transcoder

CONFIG, WEIGHTS = "config.json", "ae.pt"
SUBMODULE = re.compile(r"(resid_post|mlp_out|attn_out)_layer_\d+")


def load(path: str | os.PathLike[str], options: Options) -> TranscoderSet:
    """Read one trainer's folder, or a folder of them; see `load_transcoders`."""
    path = Path(path)
    files = [folder / WEIGHTS for folder in folders_with(WEIGHTS, path, "dictionary_learning")]
    found = one_per_layer([(_layer(file, _trainer(file), options), file) for file in files], path)
    return TranscoderSet({layer: _read(file, options) for layer, file in found.items()})


def _trainer(file: Path) -> dict[str, Any]:
    trainer = read_json(file.parent / CONFIG).get("trainer")
    if not isinstance(trainer, dict):
        raise ValueError(f"{file.parent / CONFIG} has no trainer; it is not a configuration of dictionary_learning")
    kind = trainer.get("dict_class")
    if kind != "AutoEncoderTopK":
        raise ValueError(f"{file}: dict_class {kind!r} is not supported; of dictionary_learning's, AutoEncoderTopK is")
    return trainer


def _layer(file: Path, trainer: dict[str, Any], options: Options) -> int:
    layer = options.layer if options.layer is not None else trainer.get("layer")
    if not isinstance(layer, int):
        raise ValueError(f"{file.parent / CONFIG} names no layer; pass layer=")
    return layer


def _read(file: Path, options: Options) -> Transcoder:
    trainer = _trainer(file)
    tensors = read_pickle(file, [])
    if not isinstance(tensors, dict):
        raise ValueError(f"{file}: expected a dict of tensors, got {type(tensors).__name__}")
    stored_k, _ = tensors.pop("k", None), tensors.pop("threshold", None)  # the threshold is for use without k
    k = int(stored_k) if stored_k is not None else trainer.get("k")
    if k is None or trainer.get("k", k) != k:
        raise ValueError(f"{file}: k is {k} in the weights and {trainer.get('k')} in {CONFIG}; they must agree")
    declared = {"F": trainer.get("dict_size"), "d_in": trainer.get("activation_dim")}
    weights = from_table(tensors, DICTIONARY_LEARNING, file, declared)
    weights["b_in"] = weights["b_dec"]
    match = SUBMODULE.fullmatch(str(trainer.get("submodule_name") or ""))
    hook = f"hook_{match[1]}" if match is not None else None
    if hook is None and not (options.hook_in and options.hook_out):
        raise ValueError(
            f"{file}: submodule {trainer.get('submodule_name')!r} is not known here; pass hook_in= and hook_out="
        )
    return build(weights, activation=TopK(k), hook_in=hook or "", hook_out=hook or "", options=options, source=file)
