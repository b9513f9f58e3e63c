"""update: from sparse entries to new weights. The weight gradients are summed and Adam takes a step.

    dW_enc[id] += dh x[n]     db_enc[id] += dh     dW_dec[id] += value g[n]     then Adam over W_enc, b_enc, W_dec

Adam starts with moments from ten steps, so that a wrong gradient shows in the weights (in the first step only its sign
does). Weights move on from sample to sample; the first call is the one that is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import data
from bench.registry import Case, Op, Provider, Run, Verdict
from pullback import ops

from . import sparse_layer
from .sparse_layer import Layer

LR, BETAS, EPS, STEPS_BEFORE = 1e-3, (0.9, 0.99), 1e-8, 10

Weights = tuple[Tensor, ...]  # W_enc (F, d), b_enc (F), W_dec (F, d)


@dataclass(frozen=True)
class Problem:
    layer: Layer
    dh: Tensor  # (N, k), the gradients of the values
    weights: Weights
    mean: Weights
    square: Weights

    def optimizer(self, **how: bool) -> tuple[torch.optim.Adam, list[Tensor]]:
        """torch's Adam on copies of the weights, with the moments of the steps before."""
        weights = [w.clone() for w in self.weights]
        adam = torch.optim.Adam(weights, lr=LR, betas=BETAS, eps=EPS, **how)
        for w, m, v in zip(weights, self.mean, self.square, strict=True):
            where = w.device if how.get("fused") else "cpu"
            step = torch.tensor(float(STEPS_BEFORE), device=where)
            adam.state[w] = {"step": step, "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
        return adam, weights


def make(case: Case, device: torch.device, g: torch.Generator) -> Problem:
    layer = sparse_layer.make(case, device, g)
    dh = sparse_layer.dots(layer.g, layer.W_dec, layer.ids)
    F, d = layer.W_dec.shape
    shapes = ((F, d), (F,), (F, d))

    def normals() -> list[Tensor]:
        return [torch.randn(shape, device=device, generator=g) for shape in shapes]

    sizes = (float(dh.abs().mean()), float(dh.abs().mean()), float(layer.g.abs().mean()))
    return Problem(
        layer,
        dh,
        tuple(w / d**0.5 for w in normals()),
        tuple(size * m for size, m in zip(sizes, normals(), strict=True)),
        tuple(size**2 * (0.5 + v.abs()) for size, v in zip(sizes, normals(), strict=True)),
    )


def reference(p: Problem) -> list[data.Sampled]:
    places = data.sample(p.layer.n_features, p.layer.x.device)
    gradients = sparse_layer.exact_gradients(p.layer, places)
    t = STEPS_BEFORE + 1
    result = []
    for gradient, w, m, v in zip(gradients, p.weights, p.mean, p.square, strict=True):
        w, m, v = (part[places].double() for part in (w, m, v))
        m = BETAS[0] * m + (1 - BETAS[0]) * gradient.expected
        v = BETAS[1] * v + (1 - BETAS[1]) * gradient.expected.square()
        root = (v / (1 - BETAS[1] ** t)).sqrt() + EPS
        move = LR / (1 - BETAS[0] ** t) * m / root
        # The moments are rounded to float32 and so is the weight; a gradient left out moves it a thousand times as far.
        slack = LR * gradient.allowed / root + 1e-4 * LR * (m.abs() + root) / root
        result.append(data.Sampled(places, w - move, slack + 4 * torch.finfo(torch.float32).eps * w.abs()))
    return result


def check(_: Problem, expected: list[data.Sampled], output: Weights) -> Verdict:
    return Verdict(max(part.error(got[part.places]) for part, got in zip(expected, output, strict=True)))


def _summed_by_csr(p: Problem) -> Callable[[], Weights]:
    def gradients() -> Weights:
        entries = sparse_layer.Transposed(p.layer.ids, p.layer.n_features)
        db = p.dh.new_zeros(p.layer.n_features).index_add_(0, p.layer.ids.flatten(), p.dh.flatten())
        return entries.times(p.dh, p.layer.x), db, entries.times(p.layer.values, p.layer.g)

    return gradients


def _summed_by_us(p: Problem) -> Callable[[], Weights]:
    indptr, ids, F = p.layer.indptr, p.layer.ids.flatten(), p.layer.n_features
    dh, values, ones = p.dh.flatten(), p.layer.values.flatten(), p.dh.new_ones(len(p.dh), 1)

    def gradients() -> Weights:
        return (
            ops.segment_outer(indptr, ids, dh, p.layer.x, F),
            ops.segment_outer(indptr, ids, dh, ones, F)[:, 0],
            ops.segment_outer(indptr, ids, values, p.layer.g, F),
        )

    return gradients


def _then_adam(summed: Callable[[Problem], Callable[[], Weights]], **how: bool) -> Callable[[Problem], Run]:
    def build(p: Problem) -> Run:
        gradients = summed(p)
        adam, weights = p.optimizer(**how)

        def run() -> Weights:
            for w, gradient in zip(weights, gradients(), strict=True):
                w.grad = gradient
            adam.step()
            return tuple(weights)

        return run

    return build


def _in_one_pass(p: Problem) -> Run:
    """Gradients go from registers into Adam: they are never written."""
    n, k = p.layer.ids.shape
    rows = torch.arange(n, device=p.dh.device, dtype=torch.int32).repeat_interleave(k)

    def gradient() -> ops.SparseGradient:
        starts, order = ops.feature_order(p.layer.ids.flatten(), p.layer.n_features)
        return ops.SparseGradient(starts, order, rows, p.dh.flatten(), p.layer.values.flatten(), p.layer.x, p.layer.g)

    return _stepping(p, gradient)


def _in_one_pass_of_no_entries(p: Problem) -> Run:
    """The same pass with nothing to sum: what Adam alone takes."""
    none, nothing = p.layer.ids.new_empty(0), p.dh.new_empty(0)
    starts = torch.zeros(p.layer.n_features + 1, dtype=torch.int64, device=p.dh.device)
    empty = ops.SparseGradient(starts, none, none, nothing, nothing, p.layer.x, p.layer.g)
    return _stepping(p, lambda: empty)


def _stepping(p: Problem, gradient: Callable[[], ops.SparseGradient]) -> Run:
    weights, mean, square = (
        ops.DictionaryParams(*(part.clone() for part in parts)) for parts in (p.weights, p.mean, p.square)
    )
    step = STEPS_BEFORE

    def run() -> Weights:
        nonlocal step
        step += 1
        ops.adam_(gradient(), weights, mean, square, 1.0, LR, step, betas=BETAS, eps=EPS)
        return tuple(weights)

    return run


def _adam_alone(p: Problem) -> Run:
    adam, weights = p.optimizer(fused=True)
    for w, gradient in zip(weights, _summed_by_csr(p)(), strict=True):
        w.grad = gradient
    return adam.step


UPDATE = Op(
    name="update",
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
        Provider("pullback", _in_one_pass),
        Provider("pullback sums, Adam fused", _then_adam(_summed_by_us, fused=True)),
        Provider("torch CSR, Adam fused", _then_adam(_summed_by_csr, fused=True)),
        Provider("torch CSR, Adam foreach", _then_adam(_summed_by_csr, foreach=True)),
        Provider("Adam fused alone", _adam_alone, role="floor"),
        Provider("pullback Adam alone", _in_one_pass_of_no_entries, role="floor"),
    ),
)
