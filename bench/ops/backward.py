"""backward: the weight gradients of a sparse layer, from the gradient of its output.

dh[n, j] = <g[n], W_dec[id]>      dW_enc[id] += dh x[n]      db_enc[id] += dh      dW_dec[id] += value g[n]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench import data, pullbacks
from bench.registry import Case, Op, Provider, Run, Verdict
from pullback import ops

from . import sparse_layer
from .sparse_layer import Layer

Gradients = tuple[Tensor, Tensor, Tensor]


def reference(layer: Layer) -> tuple[data.Sampled, ...]:
    return sparse_layer.exact_gradients(layer, data.sample(layer.n_features, layer.x.device))


def check(_: Layer, expected: tuple[data.Sampled, ...], output: Gradients) -> Verdict:
    """dW_enc (F, d), db_enc (F) and dW_dec (F, d)."""
    return Verdict(max(part.error(got[part.places]) for part, got in zip(expected, output, strict=True)))


def _ours(layer: Layer) -> Run:
    indptr, ids, values, F = layer.indptr, layer.ids.flatten(), layer.values.flatten(), layer.n_features
    ones = layer.x.new_ones(len(layer.x), 1)

    def run() -> Gradients:
        dh = ops.sampled_dot(layer.g, layer.W_dec, indptr, ids)
        return (
            ops.segment_outer(indptr, ids, dh, layer.x, F),
            ops.segment_outer(indptr, ids, dh, ones, F)[:, 0],
            ops.segment_outer(indptr, ids, values, layer.g, F),
        )

    return run


def _dense(layer: Layer) -> Run:
    """What autograd does behind a scatter and dense GEMMs."""
    ids = layer.ids.long()

    def run() -> Gradients:
        zeros = layer.x.new_zeros(len(ids), layer.n_features)
        acts = zeros.scatter(1, ids, layer.values)
        dh = zeros.scatter(1, ids, (layer.g @ layer.W_dec.T).gather(1, ids))
        return dh.T @ layer.x, dh.sum(0), acts.T @ layer.g

    return run


def _csr(layer: Layer) -> Run:
    def run() -> Gradients:
        entries = sparse_layer.Transposed(layer.ids, layer.n_features)
        dh = sparse_layer.dots(layer.g, layer.W_dec, layer.ids)
        db = layer.x.new_zeros(layer.n_features).index_add_(0, layer.ids.flatten(), dh.flatten())
        return entries.times(dh, layer.x), db, entries.times(layer.values, layer.g)

    return run


def _sparsify(layer: Layer) -> Run:
    """eai-sparsify's own backward pass through decoder and encoder, for these features instead of those it selects."""
    from sparsify.fused_encoder import FusedEncoder  # type: ignore[import-not-found]
    from sparsify.utils import decoder_impl  # type: ignore[import-not-found]

    class Given(FusedEncoder):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor, ids: Tensor, values: Tensor) -> tuple[Tensor, ...]:
            ctx.save_for_backward(x, W, b, ids)
            return values.clone(), ids, values.new_empty(0)

    W_enc, W_dec = (layer.W_dec.clone().requires_grad_() for _ in range(2))
    b_enc = layer.x.new_zeros(layer.n_features).requires_grad_()
    values, ids, _ = Given.apply(layer.x, W_enc, b_enc, layer.ids.long(), layer.values)
    y = decoder_impl(ids, values, W_dec.mT)
    return lambda: torch.autograd.grad(y, (W_enc, b_enc, W_dec), layer.g, retain_graph=True)  # type: ignore[return-value]


def _index_add(layer: Layer) -> Run:
    """Every product is built, then added into place: what eai-sparsify does for its encoder, here for both."""
    flat, F = layer.ids.flatten(), layer.n_features

    def run() -> Gradients:
        dh = sparse_layer.dots(layer.g, layer.W_dec, layer.ids)
        zeros = torch.zeros_like(layer.W_dec)
        d_enc = zeros.index_add(0, flat, (dh[:, :, None] * layer.x[:, None]).flatten(0, 1))
        d_dec = zeros.index_add(0, flat, (layer.values[:, :, None] * layer.g[:, None]).flatten(0, 1))
        return d_enc, layer.x.new_zeros(F).index_add_(0, flat, dh.flatten()), d_dec

    return run


BACKWARD = Op(
    name="backward",
    cases=(
        Case(data.TINY, ("tiny",)),
        Case(data.SMALL, ("quick", "full"), label="A"),
        Case(data.WIDE, ("full",), label="B"),
        Case(data.GPT2, ("gpu",), label="GPT-2 small"),
        Case(data.GEMMA, ("gpu",), label="Gemma-2-2b"),
    ),
    inputs=sparse_layer.make,
    reference=reference,
    check=check,
    providers=(
        *pullbacks.forced(_ours, "segment_outer", "sampled_dot"),
        Provider("torch dense", _dense),
        Provider("torch CSR", _csr),
        Provider("torch index_add", _index_add),
        Provider("sparsify", _sparsify, needs=("sparsify",)),
    ),
)
