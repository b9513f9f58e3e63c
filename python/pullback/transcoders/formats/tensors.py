"""What the readers and writers share: which tensor of a file is which of ours, and which way round it lies.

A `Convention` is a table. Reading checks every shape against it and turns the tensors into ours; writing goes the other
way. Nothing is inferred from the look of a matrix: a square one is read as its layout stores it, one that lies the
wrong way round is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pullback.transcoders.activations import Activation, JumpReLU
from pullback.transcoders.reading import ModelReading
from pullback.transcoders.transcoder import Transcoder

OURS = {
    "W_enc": "F d_in",
    "b_enc": "F",
    "W_dec": "F d_out",
    "b_dec": "d_out",
    "W_skip": "d_out d_in",
    "theta": "F",
    "b_in": "d_in",
}


@dataclass(frozen=True)
class Convention:
    """Names and axes of the tensors of one layout: {our name: (their name, their axes)}."""

    name: str
    tensors: Mapping[str, tuple[str, str]]
    optional: frozenset[str] = field(default_factory=frozenset)


CIRCUIT_TRACER = Convention(
    "circuit-tracer",
    {
        "W_enc": ("W_enc", "F d_in"),
        "b_enc": ("b_enc", "F"),
        "W_dec": ("W_dec", "F d_out"),
        "b_dec": ("b_dec", "d_out"),
        "W_skip": ("W_skip", "d_out d_in"),
        "theta": ("activation_function.threshold", "F"),
    },
    frozenset({"W_skip", "theta"}),
)
SAELENS = Convention(
    "SAELens",
    {
        "W_enc": ("W_enc", "d_in F"),
        "b_enc": ("b_enc", "F"),
        "W_dec": ("W_dec", "F d_out"),
        "b_dec": ("b_dec", "d_out"),
        "W_skip": ("W_skip", "d_out d_in"),
        "theta": ("threshold", "F"),
    },
    frozenset({"W_skip", "theta"}),
)
SPARSIFY = Convention(
    "sparsify",
    {
        "W_enc": ("encoder.weight", "F d_in"),
        "b_enc": ("encoder.bias", "F"),
        "W_dec": ("W_dec", "F d_out"),
        "b_dec": ("b_dec", "d_out"),
        "W_skip": ("W_skip", "d_out d_in"),
    },
    frozenset({"W_skip"}),
)
GEMMASCOPE = Convention(
    "GemmaScope",
    {
        "W_enc": ("W_enc", "d_in F"),
        "b_enc": ("b_enc", "F"),
        "W_dec": ("W_dec", "F d_out"),
        "b_dec": ("b_dec", "d_out"),
        "theta": ("threshold", "F"),
    },
)
GEMMASCOPE2 = Convention(
    "GemmaScope 2",
    {
        "W_enc": ("w_enc", "d_in F"),
        "b_enc": ("b_enc", "F"),
        "W_dec": ("w_dec", "F d_out"),
        "b_dec": ("b_dec", "d_out"),
        "W_skip": ("affine_skip_connection", "d_in d_out"),
        "theta": ("threshold", "F"),
    },
    frozenset({"W_skip"}),
)
TRANSCODER_CIRCUITS = Convention(
    "transcoder_circuits",
    {
        "W_enc": ("W_enc", "d_in F"),
        "b_enc": ("b_enc", "F"),
        "W_dec": ("W_dec", "F d_out"),
        "b_in": ("b_dec", "d_in"),
        "b_dec": ("b_dec_out", "d_out"),
    },
)
DICTIONARY_LEARNING = Convention(
    "dictionary_learning",
    {
        "W_enc": ("encoder.weight", "F d_in"),
        "b_enc": ("encoder.bias", "F"),
        "W_dec": ("decoder.weight", "d_out F"),
        "b_dec": ("b_dec", "d_out"),
    },
)
CONVENTIONS = (
    CIRCUIT_TRACER,
    SAELENS,
    SPARSIFY,
    GEMMASCOPE,
    GEMMASCOPE2,
    TRANSCODER_CIRCUITS,
    DICTIONARY_LEARNING,
)


@dataclass(frozen=True)
class Options:
    """What a caller says about files that do not say it themselves; see `load_transcoders`."""

    dtype: torch.dtype | None = None
    device: torch.device | str = "cpu"
    layer: int | None = None
    hook_in: str | None = None
    hook_out: str | None = None
    activation: Activation | None = None
    subtract_b_dec: bool | None = None


# Tables


def shapes_that_do_not_fit(tensors: Mapping[str, Tensor], convention: Convention) -> list[str]:
    """One sentence for each tensor that is missing, unknown, or lies otherwise than the table says; none if it fits."""
    known = {theirs for theirs, _ in convention.tensors.values()}
    optional = {convention.tensors[ours][0] for ours in convention.optional}
    missing, unknown = sorted(known - optional - set(tensors)), sorted(set(tensors) - known)
    if missing or unknown:
        return [
            f"tensors {missing} are missing and {unknown} are unknown; it holds {', '.join(sorted(known))}; is this "
            "another format?"
        ]
    sizes = _sizes(tensors, convention)
    wrong = []
    for theirs, axes in convention.tensors.values():
        if theirs in tensors:
            names = axes.split()
            expected, got = [sizes[axis] for axis in names], list(tensors[theirs].shape)
            if got != expected:
                hint = " (transposed?)" if got == expected[::-1] else ""
                wrong.append(f"{theirs} must be [{', '.join(names)}]={expected}, got {got}{hint}")
    return wrong


def fitting(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the conventions that names and shapes of these tensors fit."""
    return [convention.name for convention in CONVENTIONS if not shapes_that_do_not_fit(tensors, convention)]


def from_table(
    tensors: Mapping[str, Tensor],
    convention: Convention,
    source: str | os.PathLike[str],
    declared: Mapping[str, int | None] | None = None,
) -> dict[str, Tensor]:
    """Tensors of a file as ours, {our name: view in our orientation}.

    Args:
        declared: sizes that the configuration states, {"F", "d_in", "d_out": number or None if it does not}.

    Raises:
        ValueError: names or shapes do not fit the table or the configuration.
    """
    strange = sorted(name for name, tensor in tensors.items() if not isinstance(tensor, Tensor))
    if strange:
        raise ValueError(f"{source}: {strange} are not tensors; this is not the layout of {convention.name}")
    wrong = shapes_that_do_not_fit(tensors, convention)
    if wrong:
        others = [name for name in fitting(tensors) if name != convention.name]
        hint = f" They fit the layout of {' and of '.join(others)}." if others else ""
        raise ValueError(f"{source}: not the layout of {convention.name}: {'; '.join(wrong)}.{hint}")
    sizes = _sizes(tensors, convention)
    for axis, size in (declared or {}).items():
        if size is not None and size != sizes[axis]:
            raise ValueError(
                f"{source}: the configuration says {axis}={size}, the tensors have {sizes[axis]}; "
                "the two belong to different dictionaries, or a matrix lies the other way round"
            )
    return {
        ours: _turned(tensors[theirs], axes, OURS[ours])
        for ours, (theirs, axes) in convention.tensors.items()
        if theirs in tensors
    }


def to_table(transcoder: Transcoder, convention: Convention) -> dict[str, Tensor]:
    """Weights of a transcoder under a layout's names, turned its way; thresholds too where it is a JumpReLU."""
    weights: dict[str, Tensor] = {name: weight.detach() for name, weight in transcoder.named_parameters()}
    activation = transcoder.activation
    if isinstance(activation, JumpReLU):
        weights["theta"] = torch.as_tensor(activation.theta).to(transcoder.W_enc).expand(transcoder.d_sae)
    return {
        convention.tensors[ours][0]: _turned(weight, OURS[ours], convention.tensors[ours][1]).contiguous()
        for ours, weight in weights.items()
    }


def _sizes(tensors: Mapping[str, Tensor], convention: Convention) -> dict[str, int]:
    # Vectors cannot be transposed, so F and d_out are read off them; d_in is what W_enc has besides F.
    biases = [convention.tensors[ours] for ours in ("b_enc", "b_dec", "b_in") if ours in convention.tensors]
    sizes = {axis: _length(tensors[theirs]) for theirs, axis in biases}
    theirs, axes = convention.tensors["W_enc"]
    shape = list(tensors[theirs].shape)
    if "d_in" not in sizes:
        at = axes.split().index("d_in")
        turned = len(shape) == 2 and shape[1 - at] != sizes["F"] and shape[at] == sizes["F"]
        sizes["d_in"] = shape[1 - at if turned else at] if len(shape) == 2 else 0
    return sizes


def _length(vector: Tensor) -> int:
    return vector.shape[0] if vector.ndim == 1 else 0


def _turned(tensor: Tensor, axes: str, wanted: str) -> Tensor:
    names = axes.split()
    return tensor.permute([names.index(axis) for axis in wanted.split()])


# Transcoders


def build(
    weights: Mapping[str, Tensor],
    *,
    activation: Activation | None,
    hook_in: str,
    hook_out: str,
    options: Options,
    source: str | os.PathLike[str],
    reading: ModelReading | None = None,
) -> Transcoder:
    """A transcoder from weights in our orientation.

    An input bias `b_in` is folded: act((x - b_in) W_enc^T + b_enc) has the encoder bias b_enc - W_enc b_in, computed in
    float64. Thresholds `theta` make a JumpReLU where `activation` is None; `options` overrule hooks and activation.

    Raises: ValueError of `Transcoder`, naming `source`.
    """
    dtype = options.dtype
    if dtype is None:
        stored = weights["W_enc"].dtype
        dtype = torch.float32 if stored in (torch.bfloat16, torch.float16) else stored
    # Copies, since tensors inside a file's buffer are not aligned, and a GEMM may round differently on unaligned rows.
    own = {
        name: tensor.to(device=options.device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    theta, b_in = own.pop("theta", None), own.pop("b_in", None)
    if b_in is not None:
        own["b_enc"] = (own["b_enc"].double() - own["W_enc"].double() @ b_in.double()).to(dtype)
    activation = options.activation or activation or (None if theta is None else JumpReLU(theta))
    if activation is None:
        raise ValueError(f"{source}: the file does not say which activation it was trained with; pass activation=...")
    try:
        return Transcoder(
            **own,
            activation=activation,
            hook_in=options.hook_in or hook_in,
            hook_out=options.hook_out or hook_out,
            reading=reading,
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def relu_then_threshold(theta: Tensor) -> Tensor:
    """Thresholds of h * (h > theta) that equal relu(h) * (h > threshold): negative ones act as 0."""
    return theta.clamp(min=0)


# Files


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Raises ValueError if the file is not whole, FileNotFoundError if it is not there."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; copy or save the set again")
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (no dict: it has no iterator)
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise ValueError(f"{file} ({size} bytes) is damaged or cut off: {error}; copy or save the set again") from error


def write_safetensors(tensors: Mapping[str, Tensor], file: Path, like: Path) -> None:
    """Write a file that whoever may read `like` may read: safetensors itself lets only the owner.

    Raises: OSError, also for what safetensors reports of a full disk.
    """
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():  # tied weights are stored twice; safetensors refuses shared memory
        shared = any(tensor.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for t in own.values())
        own[name] = tensor.clone() if shared else tensor
    try:
        save_file(own, file)
    except SafetensorError as error:
        raise OSError(f"could not write {file.name}: {error}; what was there is intact") from error
    shutil.copymode(like, file)


def read_json(file: Path) -> dict[str, Any]:
    """Raises ValueError unless the file holds a JSON object, FileNotFoundError if it is not there."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; it says how the weights beside it are to be read")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not readable JSON ({error}); the file is damaged, copy it again") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} must hold keys and values, got {type(data).__name__}; the file is damaged")
    return data


def read_pickle(file: Path, allowed: list[Any]) -> Any:
    """`torch.load(weights_only=True)`: tensors and plain values, and instances of the `allowed` classes. No code of the
    file runs.

    Raises: ValueError if the file is damaged or asks for anything else.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; copy it again")
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch raises whatever the damage leads to: UnpicklingError, EOFError, RuntimeError, ...
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{file} is damaged, or holds something besides weights and settings, which is refused because loading it "
            f"could run code: {first}"
        ) from error


def folders_with(weights: str, path: Path, tool: str) -> list[Path]:
    """Folders that hold a file named `weights`: the one given (or that of a file given), else all below it.

    Raises: FileNotFoundError if there is none.
    """
    if path.is_file() and path.name == weights:
        return [path.parent]
    folders = [path] if (path / weights).is_file() else sorted(file.parent for file in path.rglob(weights))
    if not folders:
        raise FileNotFoundError(f"no {weights} in {path}; {tool} keeps it and its settings in one folder a dictionary")
    return folders


def one_per_layer(found: list[tuple[int, Any]], where: str | os.PathLike[str]) -> dict[int, Any]:
    """{layer: what was found}, refusing two of one layer with a ValueError that names them."""
    layers: dict[int, Any] = {}
    for layer, item in found:
        if layer in layers:
            raise ValueError(
                f"{where}: layer {layer} has two dictionaries, {layers[layer]} and {item}; name one of them"
            )
        layers[layer] = item
    return dict(sorted(layers.items()))


def in_block(hook: str, source: str | os.PathLike[str]) -> tuple[int, str]:
    """ "blocks.3.mlp.hook_in" -> (3, "mlp.hook_in"). Raises ValueError for anything else."""
    start, _, rest = hook.partition(".")
    number, _, name = rest.partition(".")
    if start != "blocks" or not number.isdigit() or not name:
        raise ValueError(
            f'{source}: hook "{hook}" is not inside a block; pass layer=, hook_in= and hook_out= '
            '(names inside the block, like "mlp.hook_in")'
        )
    return int(number), name
