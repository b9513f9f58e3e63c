"""residual: what a squared loss asks of the decoder. One pass could do it: every row is wanted twice.

r[n] = b_dec + sum_j value W_dec[id] - y[n]      dots[n, j] = <r[n], W_dec[id]>      losses[n] = ||r[n]||^2
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench import data
from bench.registry import Case, Op, Provider, Run, Verdict
from pullback import ops

from . import decode, sparse_layer
from .decode import Decoder

Output = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """A decoder (values > 0), and the targets y (N, d)."""

    decoder: Decoder
    y: Tensor


def make(case: Case, device: torch.device, g: torch.Generator) -> Problem:
    N, d = case.shape["N"], case.shape["d"]
    return Problem(decode.make(case, device, g), data.normal(case, device, g, N, d))


def reference(p: Problem) -> tuple[data.Sampled, ...]:
    exact = decode.reference(p.decoder)
    places, y = exact.places, p.y[exact.places].double()
    rows = p.decoder.W_dec[p.decoder.ids[places].long()].double()
    residual = exact.expected - y
    eps = torch.finfo(torch.float32).eps
    allowed = exact.allowed + eps * y.abs()
    dots = torch.einsum("nd,nkd->nk", residual, rows)
    d = y.shape[1]
    dots_allowed = torch.einsum("nd,nkd->nk", allowed + d * eps * residual.abs(), rows.abs())
    losses = residual.square().sum(1)
    losses_allowed = (2 * residual.abs() * allowed + allowed.square()).sum(1) + d * eps * losses
    return (
        data.Sampled(places, residual, allowed),
        data.Sampled(places, dots, dots_allowed),
        data.Sampled(places, losses, losses_allowed),
    )


def check(_: Problem, expected: tuple[data.Sampled, ...], output: Output) -> Verdict:
    return Verdict(max(part.error(got[part.places]) for part, got in zip(expected, output, strict=True)))


def _ours(p: Problem) -> Run:
    from pullback.ops import gradient  # type: ignore[attr-defined]

    c = p.decoder
    return lambda: gradient.decode_residual(c.values, c.ids, c.W_dec, c.b_dec, p.y)


def _by_ops(p: Problem) -> Run:
    """Our decode, and then our inner products: two passes."""
    c = p.decoder
    n, k = c.ids.shape
    indptr, ids = torch.arange(n + 1, device=p.y.device) * k, c.ids.flatten()

    def run() -> Output:
        residual = ops.decode_topk(c.values, c.ids, c.W_dec, c.b_dec) - p.y
        dots = ops.sampled_dot(residual, c.W_dec, indptr, ids).view(n, k)
        return residual, dots, residual.square().sum(1)

    return run


def _torch(p: Problem) -> Run:
    c = p.decoder

    def run() -> Output:
        bags = torch.nn.functional.embedding_bag(c.ids, c.W_dec, per_sample_weights=c.values, mode="sum")
        residual = bags + c.b_dec - p.y
        return residual, sparse_layer.dots(residual, c.W_dec, c.ids), residual.square().sum(1)

    return run


RESIDUAL = Op(
    name="residual",
    cases=(
        Case(data.TINY, ("tiny",)),
        Case(data.SMALL, ("quick", "full"), label="A"),
        Case(data.WIDE, ("full",), label="B"),
        Case(data.GPT2, ("gpu",), label="GPT-2 small"),
        Case(data.GEMMA, ("gpu",), label="Gemma-2-2b"),
    ),
    inputs=make,
    reference=reference,
    check=check,
    providers=(
        Provider("pullback", _ours),
        Provider("pullback in two passes", _by_ops),
        Provider("torch", _torch),
    ),
)
