"""The `.pt` files of transcoder_circuits (Dunefsky et al., arXiv 2406.11944), read only and without running their
pickle.

    {"cfg": a LanguageModelSAERunnerConfig, "state_dict": W_enc (d_in, F), b_enc (F), W_dec (F, d_out), b_dec (d_in),
     b_dec_out (d_out)}

y = relu((x - b_dec) W_enc + b_enc) W_dec + b_dec_out, so `b_dec` is an input bias and is folded. Autoencoders have no
`b_dec_out`: their `b_dec` is both. The configuration's class is not needed: its place is taken by an empty one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pullback.transcoders.activations import ReLU
from pullback.transcoders.formats.build import Options, build, in_block, one_per_layer
from pullback.transcoders.formats.files import read_pickle
from pullback.transcoders.formats.recognise import OF_A_RUN
from pullback.transcoders.formats.tables import TRANSCODER_CIRCUITS, from_table
from pullback.transcoders.sets import TranscoderSet
from pullback.transcoders.transcoder import Transcoder

NAMES = {"__module__": "sae_training.config", "__qualname__": "LanguageModelSAERunnerConfig"}


def load(path: str | os.PathLike[str], options: Options) -> TranscoderSet:
    """Read one file, or a folder with one a layer; see `load_transcoders`."""
    path = Path(path)
    files = [path] if path.is_file() else [f for f in sorted(path.glob("*.pt")) if not OF_A_RUN.fullmatch(f.name)]
    if not files:
        raise FileNotFoundError(f"no .pt file in {path}")
    read = [_read(file, options) for file in files]
    chosen = [(layer, transcoder) for layer, _, transcoder in read if options.layer in (None, layer)]
    if not chosen:
        raise ValueError(f"{path} has no layer {options.layer}")
    one_per_layer([(layer, file) for layer, file, _ in read], path)
    return TranscoderSet(dict(chosen))


def _read(file: Path, options: Options) -> tuple[int, Path, Transcoder]:
    config_class = type("LanguageModelSAERunnerConfig", (), dict(NAMES))
    content = read_pickle(file, [config_class, torch.device])
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict) or "cfg" not in content:
        keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{file}: a file of transcoder_circuits holds cfg and state_dict, this one {keys}")
    config = content["cfg"]
    config = config if isinstance(config, dict) else vars(config)
    tensors = dict(content["state_dict"])
    if "b_dec_out" not in tensors and "b_dec" in tensors:
        tensors["b_dec_out"] = tensors["b_dec"]
    declared = {"d_in": config.get("d_in"), "d_out": config.get("d_out") if config.get("is_transcoder") else None}
    weights = from_table(tensors, TRANSCODER_CIRCUITS, file, declared)
    layer, hook_in, hook_out = _hooks(file, config, options)
    transcoder = build(weights, activation=ReLU(), hook_in=hook_in, hook_out=hook_out, options=options, source=file)
    return layer, file, transcoder


def _hooks(file: Path, config: dict[str, Any], options: Options) -> tuple[int, str, str]:
    if options.layer is not None and options.hook_in and options.hook_out:
        return options.layer, options.hook_in, options.hook_out
    layer, hook_in = in_block(_named(config, "hook_point", "hook_point_layer"), file)
    if not config.get("is_transcoder"):
        return layer, hook_in, hook_in
    out_layer, hook_out = in_block(_named(config, "out_hook_point", "out_hook_point_layer"), file)
    if out_layer != layer:
        raise ValueError(f"{file}: reads layer {layer} and writes layer {out_layer}; a transcoder has one")
    return layer, hook_in, hook_out


def _named(config: dict[str, Any], hook: str, layer: str) -> str:
    """The hook's name; in old runs "blocks.{layer}.hook_mlp_out" with the number beside it."""
    return str(config.get(hook) or "").replace("{layer}", str(config.get(layer)))
