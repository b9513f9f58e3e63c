"""Which nodes, and which paths, are meant: comparisons of a node's layer, position, head, feature or kind."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.paths.nodes import HEAD, KINDS, SKIP

Wanted: TypeAlias = Any
"""A value, or (operator, value)."""

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
SPELT = {"=": "==", "EQ": "==", "NE": "!=", "GT": ">", "GE": ">=", "LT": "<", "LE": "<="}
SUBLAYERS = ("resid_pre", "resid_mid", "mlp_out", "attn_out")


@dataclass(frozen=True)
class FeatureFilter:
    """A node that meets every comparison given: `FeatureFilter(kind="head", layer=(">=", 7), head=("!=", 3))`.

    Each is a value, or (operator, value) with ==, !=, >, >=, <, <= (EQ, NE, GT, GE, LT, LE). What a node does not have,
    as a feature has no head, differs from every value and meets no other comparison.

    Attributes:
        kind: "feature", "head", "embedding", "position", "error", "bias", "own", "skip", and the roots' kinds.
        layer: -1 for embeddings and positions.
        sublayer: "resid_mid" of features, "resid_pre" of heads, embeddings and positions, "mlp_out" or "attn_out" of
            errors and biases: where the path goes on, or ends.
        pos: position in the prompt, from its start.
    """

    kind: Wanted = None
    layer: Wanted = None
    sublayer: Wanted = None
    pos: Wanted = None
    head: Wanted = None
    feature: Wanted = None

    def __post_init__(self) -> None:
        for name, wanted in self._given():
            sign, value = _comparison(name, wanted)
            if name in ("kind", "sublayer"):
                known = KINDS if name == "kind" else SUBLAYERS
                if value not in known or sign not in ("==", "!="):
                    raise ValueError(f"paths: a filter's {name} is == or != one of {', '.join(known)}; got {wanted!r}")
            elif isinstance(value, bool) or not isinstance(value, int) or value < (-1 if name == "layer" else 0):
                raise ValueError(f"paths: a filter's {name} must be a number from 0, got {wanted!r}")

    @staticmethod
    def parse(text: str) -> FeatureFilter:
        """From text: "kind=head,layer>=7,head!=3". Raises ValueError for text that is none."""
        names = [f.name for f in fields(FeatureFilter)]
        wanted: dict[str, Wanted] = {}
        for term in text.split(","):
            found = re.fullmatch(r"\s*(\w+)\s*(==|!=|>=|<=|=|>|<)\s*([\w-]+)\s*", term)
            if found is None or found[1] not in names or found[1] in wanted:
                raise ValueError(f"paths: '{term}' is no comparison of {', '.join(names)}, such as layer>=7")
            name, sign, value = found.groups()
            wanted[name] = (sign, int(value) if re.fullmatch(r"-?\d+", value) else value)
        return FeatureFilter(**wanted)

    def matches(self, kind: Tensor | int, layer: Tensor | int, index: Tensor, pos: Tensor) -> Tensor:
        """Bool[Tensor, '...'], of nodes whose columns broadcast."""
        kind = torch.as_tensor(kind, device=index.device)
        fits = torch.ones((), dtype=torch.bool, device=index.device)
        for name, wanted in self._given():
            sign, value = _comparison(name, wanted)
            if name == "kind":
                met = COMPARE[sign](kind, KINDS.index(value))
            elif name == "sublayer":
                met = COMPARE[sign](_sublayer(kind, index), SUBLAYERS.index(value))
            elif name in ("head", "feature"):
                own = kind == (HEAD if name == "head" else k.FEATURE)
                met = (own & COMPARE[sign](index, value)) | (~own if sign == "!=" else False)
            else:
                met = COMPARE[sign](torch.as_tensor(layer) if name == "layer" else pos, value)
            fits = fits & torch.as_tensor(met, device=index.device)
        return fits

    def _given(self) -> list[tuple[str, Wanted]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) is not None]


Filters: TypeAlias = FeatureFilter | Iterable[FeatureFilter]


def as_filters(given: Filters | str | Iterable[str] | None) -> tuple[FeatureFilter, ...]:
    """One or several, in words or not."""
    if given is None:
        return ()
    several = [given] if isinstance(given, FeatureFilter | str) else list(given)
    return tuple(FeatureFilter.parse(one) if isinstance(one, str) else one for one in several)


def any_matches(filters: Iterable[FeatureFilter], kind: Any, layer: Any, index: Tensor, pos: Tensor) -> Tensor | None:
    """Where one of them does; None without filters."""
    found = [one.matches(kind, layer, index, pos) for one in filters]
    return None if not found else torch.stack(torch.broadcast_tensors(*found)).any(0)


def _comparison(name: str, wanted: Wanted) -> tuple[str, Any]:
    sign, value = wanted if isinstance(wanted, tuple) and len(wanted) == 2 else ("==", wanted)
    sign = SPELT.get(sign, sign)
    if sign not in COMPARE:
        raise ValueError(f"paths: a filter's {name} compares with {', '.join(COMPARE)}; got {wanted!r}")
    return sign, value


def _sublayer(kind: Tensor, index: Tensor) -> Tensor:
    mid = (kind == k.FEATURE) | (kind == SKIP) | (kind == k.OWN)
    from_attention = (kind == k.BIAS) & (index == k.BIAS_KINDS.index("attn"))
    before = (kind == HEAD) | (kind == k.EMBEDDING) | (kind == k.POSITION)
    written = torch.where(from_attention, SUBLAYERS.index("attn_out"), SUBLAYERS.index("mlp_out"))
    return torch.where(before, SUBLAYERS.index("resid_pre"), torch.where(mid, SUBLAYERS.index("resid_mid"), written))
