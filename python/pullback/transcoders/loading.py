"""From a path or a reference to a set: find the files, find the layout, read it."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import torch

from pullback.transcoders.activations import Activation
from pullback.transcoders.crosslayer import CrossLayerTranscoder
from pullback.transcoders.formats.build import Options
from pullback.transcoders.formats.recognise import READABLE, recognise
from pullback.transcoders.sets import TranscoderSet

READERS = {name: name.replace("-", "_") for name in READABLE} | {
    "pullback": "native",
    "gemmascope2": "gemmascope",
    "circuit-tracer-clt": "crosslayer",
    "gemmascope2-clt": "gemmascope_clt",
}


def load_transcoders(
    path: str | os.PathLike[str] | tuple[str, str],
    *,
    format: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    layer: int | None = None,
    hook_in: str | None = None,
    hook_out: str | None = None,
    activation: Activation | None = None,
    subtract_b_dec: bool | None = None,
) -> TranscoderSet | CrossLayerTranscoder:
    """Read transcoders of any layout in docs/FORMATS.md: a `TranscoderSet`, or a `CrossLayerTranscoder` where features
    write to several layers.

    The layout is found by the names of the files, orientations and biases are converted by its table. What the files do
    not say is never guessed: it is asked for.

    Args:
        path: a local folder or file; a hub reference `owner/repo[/folder][@revision]` or `hf://owner/repo/...`; a
            pair (SAELens release, SAE id); or circuit-tracer's short names "gemma" and "llama". A local path that
            exists comes first; references are downloaded by huggingface_hub, or found in its cache.
        format: the layout, where the files fit several.
        dtype: of the weights in memory. By default 16-bit files become float32, others stay as stored.
        device: where the weights go.
        layer: read this layer only; also the layer of a file that does not name its own. Cross-layer transcoders are
            read whole.
        hook_in: place the input is read from inside its block, overruling the files.
        hook_out: place the output stands in for, overruling the files.
        activation: sparsity rule, overruling the files. circuit-tracer's configurations may lack one: they are then a
            JumpReLU where the file has thresholds and a ReLU where it has none.
        subtract_b_dec: whether the encoder subtracts `b_dec` from its input (sparsify; by default only autoencoders do.
            Its transcoders did too before February 2025, which their files do not say).

    Raises:
        FileNotFoundError: no such files, or a reference that is neither reachable nor in the cache.
        ValueError: a file is damaged, does not fit its configuration, fits several layouts or none, or holds something
            no `Transcoder` is equal to. The sentence names the file and what was expected.
    """
    options = Options(dtype, device, layer, hook_in, hook_out, activation, subtract_b_dec)
    if format is not None and format not in READERS:
        raise ValueError(f"format {format!r} is unknown; it must be one of {', '.join(READERS)}")
    found = _local(path)
    if format is None:
        format = recognise(found)
    reader = importlib.import_module(f"pullback.transcoders.formats.{READERS[format]}")
    return reader.load(found, options)


def _local(path: str | os.PathLike[str] | tuple[str, str]) -> Path:
    from pullback._util.atomic import previous_directory

    if not isinstance(path, tuple):
        local = Path(path)
        if local.exists():
            return local
        if previous_directory(local).is_dir():
            raise FileNotFoundError(
                f"{local} is missing because a save was cut off there; the set before it is complete "
                f"in {previous_directory(local)}: rename it back"
            )
    from pullback.transcoders import hub

    reference = hub.parse(path)
    if reference is None:
        assert not isinstance(path, tuple)
        return Path(path)  # the recogniser says that it is not there
    return hub.fetch(reference)
