"""Which tensor of a file is which of ours, and which way round it lies.

A `Convention` is a table. Reading checks every shape against it and turns the tensors into ours; writing goes the other
way. Nothing is inferred from the look of a matrix: a square one is read as its layout stores it, one that lies the
wrong way round is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pullback.transcoders.activations import JumpReLU
from pullback.transcoders.features import FeatureLayer

# Ours have their axes in this order: one that is always 1; of layers L, or of pairs N of layers, where a file holds
# several; of features; of the t layers that a feature writes to.
AXES = ("1", "L", "N", "F", "t", "d_out", "d_in")


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
CIRCUIT_TRACER_CLT = Convention(  # without the "_{layer}" behind every name
    "circuit-tracer CLT",
    {
        "W_enc": ("W_enc", "F d_in"),
        "b_enc": ("b_enc", "F"),
        "W_dec": ("W_dec", "F t d_out"),
        "b_dec": ("b_dec", "d_out"),
        "W_skip": ("W_skip", "d_in d_out"),
        "theta": ("threshold", "F"),
    },
    frozenset({"W_skip", "theta"}),
)
GEMMASCOPE2_CLT = Convention(
    "GemmaScope 2 CLT",
    dict(GEMMASCOPE2.tensors) | {"W_dec": ("w_dec", "F t d_out")},
    GEMMASCOPE2.optional,
)
CLT_FORGE = Convention(
    "CLT-Forge",
    {
        "W_enc": ("W_enc", "L d_in F"),
        "b_enc": ("b_enc", "L F"),
        "W_dec": ("W_dec", "N F d_out"),
        "b_dec": ("b_dec", "N d_out"),
        "theta": ("log_threshold", "L F"),
        "scale_in": ("estimated_norm_scaling_factor_in", "L"),
        "scale_out": ("estimated_norm_scaling_factor_out", "L"),
    },
)
CROSSLAYER_TRANSCODER = Convention(  # decoder.W is the decoder.W_{target} of all targets, one after the other
    "crosslayer-transcoder",
    {
        "W_enc": ("encoder.W", "L d_in F"),
        "b_enc": ("encoder.b", "L F"),
        "W_dec": ("decoder.W", "N F d_out"),
        "b_dec": ("decoder.b", "L d_out"),
        "theta": ("nonlinearity.theta", "1 L F"),
        "mean_in": ("input_standardizer.mean", "L d_in"),
        "std_in": ("input_standardizer.std", "L d_in"),
        "mean_out": ("output_standardizer.mean", "L d_out"),
        "std_out": ("output_standardizer.std", "L d_out"),
    },
    frozenset({"theta", "mean_in", "std_in", "mean_out", "std_out"}),
)
CROSSLAYER_CODING = Convention(  # every tensor but the last is that of all layers, or decoders, under one name
    "crosslayer-coding",
    {
        "W_enc": ("encoder_module.encoders.weight", "L F d_in"),
        "b_enc": ("encoder_module.encoders.bias_param", "L F"),
        "W_dec": ("decoder_module.decoders.weight", "N d_out F"),
        "b_dec": ("decoder_module.decoders.bias_param", "N d_out"),
        "theta": ("log_threshold", "L F"),
    },
    frozenset({"theta"}),
)
LLAMASCOPIUM_CLT = Convention(  # W_D is the W_D.{target} of all targets, one after the other; b_D that of all layers
    "llamascopium CLT",
    {
        "W_enc": ("W_E", "L d_in F"),
        "b_enc": ("b_E", "L F"),
        "W_dec": ("W_D", "N F d_out"),
        "b_dec": ("b_D", "L d_out"),
        "theta": ("activation_function.log_jumprelu_threshold", "L F"),
    },
    frozenset({"theta"}),
)
# Those of one transcoder, which a file without settings may be told by.
CONVENTIONS = (
    CIRCUIT_TRACER,
    SAELENS,
    SPARSIFY,
    GEMMASCOPE,
    GEMMASCOPE2,
    TRANSCODER_CIRCUITS,
    DICTIONARY_LEARNING,
)


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
        ours: _turned(tensors[theirs], axes, _ours(axes))
        for ours, (theirs, axes) in convention.tensors.items()
        if theirs in tensors
    }


def to_table(features: FeatureLayer, convention: Convention) -> dict[str, Tensor]:
    """Weights of a layer under a layout's names, turned its way; thresholds too where it is a JumpReLU."""
    weights = features.weights()
    activation = features.activation
    if isinstance(activation, JumpReLU):
        weights["theta"] = torch.as_tensor(activation.theta).to(features.b_enc).expand(features.d_sae)
    columns = {ours: convention.tensors[ours] for ours in weights}
    return {theirs: _turned(weights[ours], _ours(axes), axes).contiguous() for ours, (theirs, axes) in columns.items()}


def _sizes(tensors: Mapping[str, Tensor], convention: Convention) -> dict[str, int]:
    # Vectors cannot be transposed, so F and d_out are read off them; d_in is what W_enc has besides F.
    sizes = {"1": 1}
    for ours in ("b_enc", "b_dec", "b_in"):
        if ours in convention.tensors:
            theirs, axes = convention.tensors[ours]
            sizes |= _read_off(tensors[theirs], axes.split())
    theirs, axes = convention.tensors["W_enc"]
    found = _read_off(tensors[theirs], axes.split())
    turned = found["d_in"] == sizes["F"] != found["F"]
    sizes.setdefault("d_in", found["F"] if turned else found["d_in"])
    theirs, axes = convention.tensors["W_dec"]
    for axis in {"t", "N"} & set(axes.split()):
        sizes.setdefault(axis, _read_off(tensors[theirs], axes.split())[axis])
    return sizes


def _read_off(tensor: Tensor, axes: list[str]) -> dict[str, int]:
    return dict(zip(axes, tensor.shape, strict=True)) if tensor.ndim == len(axes) else dict.fromkeys(axes, 0)


def _ours(axes: str) -> str:
    return " ".join(sorted(axes.split(), key=AXES.index))


def _turned(tensor: Tensor, axes: str, wanted: str) -> Tensor:
    names = axes.split()
    return tensor.permute([names.index(axis) for axis in wanted.split()])
