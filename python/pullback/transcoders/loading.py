"""From a path or a reference to a set: find the files, find the layout, read it."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import torch

from pullback.transcoders.activations import Activation
from pullback.transcoders.crosslayer import CrossLayerTranscoder
from pullback.transcoders.formats.build import NOT_LAZY, Options
from pullback.transcoders.formats.recognise import READABLE, recognise
from pullback.transcoders.sets import TranscoderSet

READERS = {name: name.replace("-", "_") for name in READABLE} | {
    "pullback": "native",
    "gemmascope2": "gemmascope",
    "circuit-tracer-clt": "crosslayer",
    "gemmascope2-clt": "gemmascope_clt",
}
LAZY = {
    False: frozenset[str](),
    True: frozenset({"W_enc", "W_dec"}),
    "encoder": frozenset({"W_enc"}),
    "decoder": frozenset({"W_dec"}),
}
# Others hold weights that are compressed, pickled, or not the same numbers as ours.
LAZY_FORMATS = (
    "pullback",
    "circuit-tracer",
    "circuit-tracer-clt",
    "saelens",
    "sparsify",
    "gemmascope2",
    "gemmascope2-clt",
)


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
    lazy: bool | str = False,
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
        lazy: True leaves encoders and decoders in their files, "encoder" or "decoder" one of them; everything else is
            read. Encoding then streams the encoder through a bounded part of memory, and decoder rows are read where
            features are active: the same features and graphs, for a dictionary of any size. The files have to stay.
            `dtype` and `device` are those of what is read. For safetensors files of pullback, circuit-tracer, SAELens,
            sparsify and GemmaScope 2.

    Raises:
        FileNotFoundError: no such files, or a reference that is neither reachable nor in the cache.
        ValueError: a file is damaged, does not fit its configuration, fits several layouts or none, or holds something
            no `Transcoder` is equal to, or cannot be read lazily. The sentence names the file and what was expected.
    """
    if lazy not in LAZY:
        raise ValueError(f"lazy must be True, False, 'encoder' or 'decoder', got {lazy!r}")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be a torch.dtype like torch.float32, or None, got {dtype!r}")
    options = Options(dtype, device, layer, hook_in, hook_out, activation, subtract_b_dec, LAZY[lazy])
    if format is not None and format not in READERS:
        raise ValueError(f"format {format!r} is unknown; it must be one of {', '.join(READERS)}")
    found = _local(path)
    if format is None:
        format = recognise(found)
    if lazy and format not in LAZY_FORMATS:
        raise ValueError(f"{found}: files of {format} cannot be read lazily; {NOT_LAZY}")
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
