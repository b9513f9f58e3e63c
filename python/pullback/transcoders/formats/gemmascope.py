"""GemmaScope 1 (`params.npz`) and 2 (`params.safetensors` with `config.json`), read only.

1: W_enc (d_in, F), b_enc (F), W_dec (F, d_out), b_dec (d_out), threshold (F). Nothing but the path tells a transcoder
   (`google/gemma-scope-2b-pt-transcoders`) from an autoencoder, and nothing else tells the layer.
2: w_enc (d_in, F), b_enc, w_dec (F, d_out), b_dec, threshold, and for the affine ones affine_skip_connection
   (d_in, d_out): the other way round than our W_skip.


Both cut off negative features before the threshold is applied.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pullback.transcoders.formats.build import Options, build, one_per_layer, relu_then_threshold
from pullback.transcoders.formats.files import read_json, read_npz, read_safetensors
from pullback.transcoders.formats.tables import GEMMASCOPE, GEMMASCOPE2, from_table
from pullback.transcoders.sets import TranscoderSet
from pullback.transcoders.transcoder import Transcoder

FILES = ("params.npz", "params.safetensors")
LAYER = re.compile(r"(?:^|/)layer_(\d+)(?=[_/]|$)")
IN_BLOCK = re.compile(r"(?:model\.(?:language_model\.)?layers\.(\d+)\.)?(.+)")
HOOKS = {  # of the Hugging Face modules, as TransformerLens names the place
    "pre_feedforward_layernorm.output": "mlp.hook_in",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
HOOKS_1 = ("ln2.hook_normalized", "hook_mlp_out")


def load(path: str | os.PathLike[str], options: Options) -> TranscoderSet:
    """Read one dictionary, or a folder with one dictionary a layer; see `load_transcoders`."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(file for name in FILES for file in path.rglob(name))
    if not files:
        raise FileNotFoundError(f"no {' or '.join(FILES)} in {path}; GemmaScope keeps a dictionary in one")
    found = [(_layer(file, options if len(files) == 1 else Options()), file) for file in files]
    chosen = [(layer, file) for layer, file in found if options.layer in (None, layer)]
    if not chosen:
        raise ValueError(f"{path} has no layer {options.layer}")
    return TranscoderSet({layer: read(file, options) for layer, file in one_per_layer(chosen, path).items()})


def is_one(file: Path) -> bool:
    """Whether a file is a dictionary of GemmaScope."""
    return file.suffix == ".npz" or (file.suffix == ".safetensors" and "w_enc" in read_safetensors(file))


def read(file: Path, options: Options, hooks: tuple[str, str] | None = None) -> Transcoder:
    """One dictionary; `hooks` are those its set was configured with."""
    if file.suffix == ".npz":
        weights = from_table(read_npz(file), GEMMASCOPE, file)
        hooks = hooks or _hooks_1(file, options)
    else:
        weights = from_table(options.read(file), GEMMASCOPE2, file)
        hooks = hooks or _hooks_2(file, options, "W_skip" in weights)
    weights["theta"] = relu_then_threshold(weights["theta"])
    return build(weights, activation=None, hook_in=hooks[0], hook_out=hooks[1], options=options, source=file)


def _layer(file: Path, options: Options) -> int:
    stated = [int(layer) for layer in LAYER.findall(file.absolute().parent.as_posix())[-1:]]
    if file.suffix == ".safetensors" and (file.parent / "config.json").is_file():
        config = read_json(file.parent / "config.json")
        for key in ("hf_hook_point_in", "hf_hook_point_out"):
            match = IN_BLOCK.fullmatch(str(config.get(key) or ""))
            if match is not None and match[1] is not None:
                stated.append(int(match[1]))
    if len(set(stated)) > 1:
        raise ValueError(f"{file}: its folder and config.json name different layers, {stated}")
    if stated and options.layer in (None, stated[0]):
        return stated[0]
    if options.layer is None:
        raise ValueError(f"{file}: neither its folder (layer_3) nor config.json names the layer; pass layer=")
    if stated:
        raise ValueError(f"{file} is of layer {stated[0]}, not {options.layer}")
    return options.layer


def _hooks_1(file: Path, options: Options) -> tuple[str, str]:
    if options.hook_in and options.hook_out:
        return options.hook_in, options.hook_out
    if "transcoders" in file.absolute().as_posix():
        return HOOKS_1
    raise ValueError(
        f"{file}: the files of GemmaScope's transcoders and autoencoders look alike, and this path does not say "
        '"transcoders"; pass hook_in= and hook_out= (for a transcoder "ln2.hook_normalized" and "hook_mlp_out")'
    )


def _hooks_2(file: Path, options: Options, has_skip: bool) -> tuple[str, str]:
    config = read_json(file.parent / "config.json")
    if config.get("architecture") != "jump_relu":
        raise ValueError(f"{file}: architecture must be jump_relu, config.json says {config.get('architecture')!r}")
    if bool(config.get("affine_connection", has_skip)) != has_skip:
        raise ValueError(
            f"{file}: config.json says affine_connection={config['affine_connection']}, but the file "
            f"{'has' if has_skip else 'lacks'} affine_skip_connection"
        )
    return hooks_of(config, file, options)


def hooks_of(config: dict[str, Any], file: Path, options: Options) -> tuple[str, str]:
    """The hooks that a configuration of GemmaScope 2 names, or that are given."""
    hooks = []
    for key, given in (("hf_hook_point_in", options.hook_in), ("hf_hook_point_out", options.hook_out)):
        match = IN_BLOCK.fullmatch(str(config.get(key) or ""))
        hook = given or (HOOKS.get(match[2]) if match is not None else None)
        if hook is None:
            argument = key.replace("hf_hook_point", "hook")
            raise ValueError(f"{file}: {key} is {config.get(key)!r}, which is not known here; pass {argument}=")
        hooks.append(hook)
    return hooks[0], hooks[1]
