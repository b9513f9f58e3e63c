"""`pullback convert`: transcoders from one layout to another."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pullback.commands.opening import MODEL_HELP, command, open_model

if TYPE_CHECKING:
    from torch import Tensor

    from pullback.transcoders import LayeredDictionary

READABLE = (
    "pullback",
    "circuit-tracer",
    "saelens",
    "sparsify",
    "gemmascope",
    "gemmascope2",
    "dictionary_learning",
    "transcoder_circuits",
    "circuit-tracer-clt",
    "gemmascope2-clt",
    "clt-forge",
    "crosslayer-coding",
    "crosslayer-transcoder",
    "llamascopium",
)
WRITABLE = ("pullback", "saelens", "sparsify", "circuit-tracer")
MARKS = ("config.yaml", "cfg.json", "blocks.*", "layers.*", "h.*", "model.layers.*", "gpt_neox.layers.*")


def add(commands: Any) -> None:
    summary = "convert transcoders between layouts: SAELens, sparsify, circuit-tracer and others"
    parser = command(commands, "convert", run, summary)
    parser.add_argument(
        "source", metavar="SRC", help="folder, file or hub reference (owner/repo[/folder][@revision]) of transcoders"
    )
    parser.add_argument("destination", metavar="DST", type=Path, help="folder to write to")
    parser.add_argument("--to", required=True, choices=WRITABLE, help="layout to write")
    parser.add_argument("--from", dest="source_format", choices=READABLE, help="layout of SRC, where several fit")
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="write thresholds in the place of a top-k, set on these inputs: .safetensors or .npz with one [n, d_in] "
        "a layer (named 0, 1, ... or layer_0, ...), or with --model a text file, one prompt a line",
    )
    parser.add_argument(
        "--model", default=None, help=f"the model to run the prompts of --calibrate through: {MODEL_HELP}"
    )
    parser.add_argument("--layer", type=int, default=None, help="only this layer; the layer of a file that names none")
    parser.add_argument(
        "--hook-name", default=None, help="where the input is read, inside blocks.{l}, if SRC is silent"
    )
    parser.add_argument("--hook-name-out", default=None, help="what the output stands in for, if SRC is silent")
    parser.add_argument(
        "--subtract-b-dec",
        action="store_true",
        help="sparsify transcoders from before February 2025: b_dec is input bias too",
    )
    parser.add_argument("--hookpoint", default=None, help="names of sparsify's folders, such as h.{layer}.mlp")
    parser.add_argument("--force", action="store_true", help="replace transcoders that are there already")


def run(args: argparse.Namespace) -> None:
    """Read, calibrate if asked, write; says what was written and where rounding or calibration comes in."""
    from pullback.training.command import read_prompts
    from pullback.transcoders import CrossLayerTranscoder, load_transcoders

    if args.hookpoint is not None and args.to != "sparsify":
        raise ValueError(f"--hookpoint names sparsify's folders; --to is {args.to}")
    if args.destination.is_file():
        raise ValueError(f"DST names a file: '{args.destination}'")
    if not args.force and any(any(args.destination.glob(mark)) for mark in MARKS):
        raise ValueError(
            f"{args.destination} holds transcoders already; name another folder, or --force to replace them"
        )
    sets = load_transcoders(
        args.source,
        format=args.source_format,
        layer=args.layer,
        hook_in=args.hook_name,
        hook_out=args.hook_name_out,
        subtract_b_dec=True if args.subtract_b_dec else None,
    )
    calibrate = None
    if args.calibrate is not None and args.calibrate.suffix in (".safetensors", ".npz"):
        calibrate = inputs_of(args.calibrate, sets.layers)
    elif args.calibrate is not None:
        if args.model is None:
            raise ValueError("--calibrate with prompts needs --model; without, give inputs as .safetensors or .npz")
        calibrate = _recorded(open_model(args.model), sets, read_prompts(args.calibrate))
    options = {} if args.hookpoint is None else {"hookpoint": args.hookpoint}
    sets.save(args.destination, args.to, calibrate=calibrate, **options)
    cross_layer = isinstance(sets, CrossLayerTranscoder)
    written = load_transcoders(args.destination, format="circuit-tracer-clt" if cross_layer else args.to)
    for layer, transcoder in written.items():
        rule = f", was {sets[layer].activation!r}" if calibrate is not None else ""
        print(f"layer {layer}: {transcoder.extra_repr()}{rule}")
    print(f"wrote {args.destination}: {len(written)} layers, {args.to}")


def inputs_of(file: Path, layers: Sequence[int]) -> dict[int, Tensor]:
    """{layer: Float[Tensor, 'n d_in']} of a file with arrays named "3" or "layer_3".

    Raises: ValueError if the file is damaged or lacks a layer.
    """
    from pullback.transcoders.formats.files import read_npz, read_safetensors

    arrays = (read_npz if file.suffix == ".npz" else read_safetensors)(file)
    found = {layer: arrays.get(str(layer), arrays.get(f"layer_{layer}")) for layer in layers}
    missing = [layer for layer, array in found.items() if array is None]
    if missing:
        raise ValueError(f"{file} has no inputs of layers {missing} (named 3 or layer_3); it has {sorted(arrays)}")
    return {layer: array for layer, array in found.items() if array is not None}


def _recorded(model: Any, sets: LayeredDictionary, prompts: list[str]) -> dict[int, Tensor]:
    """What the transcoders read while the model runs the prompts, BOS aside."""
    import torch

    from pullback.lens import as_lens
    from pullback.lens.tokens import bos_id
    from pullback.training.masks import without_bos
    from pullback.training.source import token_batches

    lens = as_lens(model)
    lens.check(sets)
    rows: dict[int, list[Tensor]] = {layer: [] for layer in sets}
    # One forward pass serves all layers that are read at the same hooks.
    alike: dict[tuple[str, str], list[int]] = {}
    for layer, transcoder in sets.items():
        alike.setdefault((transcoder.hook_in, transcoder.hook_out), []).append(layer)
    bos = bos_id(lens, None)
    with torch.no_grad():
        for tokens, mask in token_batches(lens, prompts, batch_size=32):
            keep = without_bos(tokens, mask, bos)
            for hooks, layers in alike.items():
                for layer, (x, _) in lens.mlp_io(tokens, layers, *hooks).items():
                    rows[layer].append(x[keep.to(x.device)])
    return {layer: torch.cat(parts) for layer, parts in rows.items()}
