"""encode_relu, encode_jumprelu: the features of a dictionary without a fixed k, as sparse rows.

Bias or threshold are set so that about k of F features are active.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import data
from bench.registry import Case, Op, Provider, Run, Verdict
from pullback.transcoders import JumpReLU, ReLU


@dataclass(frozen=True)
class Encoder:
    """x (N, d), W_enc (F, d), b_enc (F); features are h where h > theta."""

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    theta: float


def make(case: Case, device: torch.device, g: torch.Generator, *, jump: bool) -> Encoder:
    N, d, F, k = (case.shape[name] for name in "NdFk")
    x, W = data.normal(case, device, g, N, d), data.normal(case, device, g, F, d) / d**0.5
    # Pre-activations are standard normal, so the quantile of k in F is known.
    quantile = float(torch.special.ndtri(torch.tensor(1 - k / F, dtype=torch.float64)))
    return Encoder(x, W, x.new_full((F,), 0.0 if jump else -quantile), quantile if jump else 0.0)


@dataclass(frozen=True)
class Expected:
    places: Tensor
    h: Tensor
    allowed: Tensor


def reference(e: Encoder) -> Expected:
    places = data.sample(len(e.x), e.x.device)
    x, W, b = e.x[places].double(), e.W_enc.double(), e.b_enc.double()
    h = torch.addmm(b, x, W.T)
    magnitude = x.norm(dim=1, keepdim=True) * W.norm(dim=1) + b.abs()
    return Expected(places, h, data.rounding(x.shape[1], magnitude, h, e.x.dtype))


def check(e: Encoder, expected: Expected, output: Any) -> Verdict:
    """Active features have their pre-activation; the rest are within a rounding of the threshold or below it."""
    indptr, ids, values = output.indptr, output.indices, output.values
    worst = 0.0
    for n, h, allowed in zip(expected.places.tolist(), expected.h, expected.allowed, strict=True):
        entries = slice(int(indptr[n]), int(indptr[n + 1]))
        chosen = ids[entries].long()
        off = (values[entries].double() - h[chosen]).abs() / allowed[chosen]
        under = (e.theta - h[chosen]) / allowed[chosen]
        rest = (h - e.theta) / allowed
        rest[chosen] = 0
        parts = [part.nan_to_num(nan=torch.inf).max() for part in (off, under, rest) if part.numel()]
        worst = max(worst, *(float(part) for part in parts))
    return Verdict(worst, {"active": float(indptr[-1]) / len(e.x)})


@dataclass(frozen=True)
class Rows:
    indptr: Tensor
    indices: Tensor
    values: Tensor


def _ours(e: Encoder) -> Run:
    rule = JumpReLU(e.theta) if e.theta else ReLU()
    return lambda: rule.encode(e.x, e.W_enc, e.b_enc)


def _torch(e: Encoder) -> Run:
    """The whole matrix of pre-activations, and then its entries beyond the threshold."""

    def run() -> Rows:
        h = torch.addmm(e.b_enc, e.x, e.W_enc.T)
        active = h > e.theta
        row, feature = active.nonzero(as_tuple=True)
        indptr = torch.nn.functional.pad(active.sum(1).cumsum(0), (1, 0))
        return Rows(indptr, feature, h[row, feature])

    return run


def _gemm(e: Encoder) -> Run:
    out = e.x.new_empty(len(e.x), len(e.W_enc))
    return lambda: torch.mm(e.x, e.W_enc.T, out=out)


def _op(name: str, jump: bool) -> Op:
    def inputs(case: Case, device: torch.device, g: torch.Generator) -> Encoder:
        return make(case, device, g, jump=jump)

    return Op(
        name=name,
        cases=(
            Case(data.TINY, ("tiny",)),
            Case(dict(data.SMALL, N=1024), ("quick", "full") if jump else ("full",), label="A"),
            Case(dict(data.WIDE, N=512), ("full",), label="B"),
            Case(data.GPT2, ("gpu",), label="GPT-2 small"),
        ),
        inputs=inputs,
        reference=reference,
        check=check,
        providers=(
            Provider("pullback", _ours),
            Provider("torch", _torch),
            Provider("GEMM alone", _gemm, role="floor"),
        ),
    )


RELU, JUMPRELU = _op("encode_relu", jump=False), _op("encode_jumprelu", jump=True)
