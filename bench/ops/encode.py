"""topk_encode: the k largest of x W_enc^T + b_enc, without the N x F matrix if one can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import data, pullbacks
from bench.registry import Absent, Case, Op, Provider, Run, Verdict
from pullback import ops


@dataclass(frozen=True)
class Encoder:
    """x (N, d), W_enc (F, d), b_enc (F)."""

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    k: int

    def preactivations(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """(h, error a float32 GEMM may have) of some rows, in float64."""
        x, W, b = self.x[places].double(), self.W_enc.double(), self.b_enc.double()
        h = torch.addmm(b, x, W.T)
        # Cauchy-Schwarz instead of |x| |W|^T, which would cost a second GEMM.
        magnitude = x.norm(dim=1, keepdim=True) * W.norm(dim=1) + b.abs()
        return h, data.rounding(x.shape[1], magnitude, h, self.x.dtype)


def make(case: Case, device: torch.device, g: torch.Generator) -> Encoder:
    N, d, F, k = (case.shape[name] for name in "NdFk")
    x, W = data.normal(case, device, g, N, d), data.normal(case, device, g, F, d) / d**0.5
    return Encoder(x, W, 0.1 * data.normal(case, device, g, F), k)


@dataclass(frozen=True)
class Expected:
    places: Tensor
    h: Tensor
    allowed: Tensor
    best: Tensor  # ids of the k largest


def reference(e: Encoder) -> Expected:
    places = data.sample(len(e.x), e.x.device)
    h, allowed = e.preactivations(places)
    return Expected(places, h, allowed, h.topk(e.k, dim=1).indices)


def check(_: Encoder, expected: Expected, output: Any) -> Verdict:
    """Every value is that of its id, and no id left out beats one taken by more than the GEMM may err. Notes how many
    rows chose exactly the features that float64 chooses."""
    values, ids = (t[expected.places] for t in output[:2])
    ids = ids.long()
    h = expected.h.gather(1, ids)
    allowed = expected.allowed.gather(1, ids)
    wrong_value = (values.double() - h.clamp(min=0)).abs() / allowed
    # What the worst of those taken is short of the worst that should have been.
    due = expected.h.gather(1, expected.best).amin(1)
    short = (due - h.amin(1)) / (2 * expected.allowed.amax(1))
    distinct = bool((ids.sort(dim=1).values.diff(dim=1) > 0).all())
    error = max(float(wrong_value.nan_to_num(nan=torch.inf).max()), float(short.max()), 0.0 if distinct else torch.inf)
    same = (ids.sort(dim=1).values == expected.best.sort(dim=1).values).all(1)
    return Verdict(error, {"rows_as_float64": float(same.double().mean())})


def _ours(e: Encoder) -> Run:
    return lambda: ops.topk_encode(e.x, e.W_enc, e.b_enc, e.k)


def _screened(e: Encoder) -> Run:
    """The certified bfloat16 screen; its shadow of W_enc is made beforehand, as a training step keeps it fresh."""
    if e.x.dtype != torch.float32:
        raise Absent("the screen is for float32 weights")
    shadow = ops.Screen(e.W_enc)
    return lambda: ops.topk_encode(e.x, e.W_enc, e.b_enc, e.k, screen=shadow)


def _torch(e: Encoder) -> Run:
    def run() -> tuple[Tensor, Tensor]:
        values, ids = torch.addmm(e.b_enc, e.x, e.W_enc.T).topk(e.k, dim=-1, sorted=False)
        return values.relu(), ids

    return run


def _compiled(e: Encoder) -> Run:
    return torch.compile(_torch(e))


def _sparsify(e: Encoder) -> Run:
    from sparsify.fused_encoder import fused_encoder  # type: ignore[import-not-found]

    return lambda: fused_encoder(e.x, e.W_enc, e.b_enc, e.k, "topk")


def _gemm(dtype: torch.dtype | None) -> Any:
    def build(e: Encoder) -> Run:
        x, W = (t.to(dtype or e.x.dtype) for t in (e.x, e.W_enc))
        out = x.new_empty(len(x), len(W))
        return lambda: torch.mm(x, W.T, out=out)

    return build


_SMALL = dict(data.SMALL, N=1024)

TOPK = Op(
    name="topk_encode",
    cases=(
        Case(data.TINY, ("tiny",)),
        Case(_SMALL, ("quick", "full"), label="A"),
        Case(dict(data.WIDE, N=512), ("quick",), label="B"),
        Case(data.WIDE, ("full",), label="B"),
        Case({"N": 256, "d": 2304, "F": 131072, "k": 64}, ("full",), label="Gemma-2-2b"),
        Case(data.GPT2, ("gpu",), "bfloat16", label="GPT-2 small"),
        Case(data.GPT2, ("gpu",), label="GPT-2 small"),
        Case(data.GEMMA, ("gpu",), "bfloat16", label="Gemma-2-2b"),
    ),
    inputs=make,
    reference=reference,
    check=check,
    providers=(
        *pullbacks.forced(_ours, "topk_encode"),
        Provider("pullback-screen", _screened, devices=("cpu",)),
        Provider("torch", _torch),
        Provider("torch-compile", _compiled, optional=True),
        Provider("sparsify", _sparsify, needs=("sparsify",)),
        Provider("GEMM alone", _gemm(None), role="floor"),
        Provider("bf16 GEMM alone", _gemm(torch.bfloat16), role="floor", devices=("cpu",)),
    ),
)
