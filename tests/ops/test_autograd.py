"""Gradients, fake tensors and torch.compile of the registered ops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pullback import ops
from pullback.ops import SparseActivations
from tests.ops.cases import pattern

N, F, D, K = 4, 11, 5, 3
F64 = torch.float64


def leaf(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=F64).requires_grad_()


ACTS = pattern(N, F, 6, F64, seed=5)
IDS = torch.tensor([[0, 2, 5], [1, 2, 10], [2, 3, 4], [0, 9, 10]], dtype=torch.int32)

# name -> (function, differentiable inputs): each closes over the pattern, which has no gradient.
DIFFERENTIABLE: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "decode_topk": (lambda v, W, b: ops.decode_topk(v, IDS, W, b), (leaf(N, K), leaf(F, D), leaf(D))),
    "decode_csr": (
        lambda v, W, b: ops.decode_csr(SparseActivations(ACTS.indptr, ACTS.indices, v, F), W, b),
        (leaf(ACTS.nnz), leaf(F, D), leaf(D)),
    ),
    "sampled_dot": (lambda g, W: ops.sampled_dot(g, W, ACTS.indptr, ACTS.indices), (leaf(N, D), leaf(F, D, seed=1))),
    "segment_outer": (
        lambda v, x: ops.segment_outer(ACTS.indptr, ACTS.indices, v, x, F),
        (leaf(ACTS.nnz), leaf(N, D, seed=1)),
    ),
    "topk_select": (lambda h: ops.topk_select(h, K)[0], (leaf(N, F),)),
    "topk_select, negatives kept": (lambda h: ops.topk_select(h, F - 1, relu=False)[0], (leaf(N, F),)),
    "topk_encode": (lambda x, W, b: ops.topk_encode(x, W, b, K)[0], (leaf(N, D), leaf(F, D, seed=1), leaf(F, seed=2))),
    "topk_encode with empty slots": (
        lambda x, W, b: ops.topk_encode(x, W, b, F - 1)[0],
        (leaf(N, D), leaf(F, D, seed=1), leaf(F, seed=2)),
    ),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients(name: str, backend: str) -> None:
    f, inputs = DIFFERENTIABLE[name]
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)


def test_gradients_on_every_set(isa: str) -> None:
    for f, inputs in DIFFERENTIABLE.values():
        assert torch.autograd.gradcheck(f, inputs)


def test_a_sparse_layer_has_the_gradients_of_the_dense_one() -> None:
    x, W_enc, b_enc, W_dec, b_dec = (
        leaf(6, 7),
        leaf(40, 7, seed=1),
        leaf(40, seed=2),
        leaf(40, 7, seed=3),
        leaf(7, seed=4),
    )
    values, indices = ops.topk_encode(x, W_enc, b_enc, 4)
    sparse = ops.decode_topk(values, indices, W_dec, b_dec)
    h = (x @ W_enc.T + b_enc).relu()
    dense = torch.where(h >= h.topk(4).values[:, -1:], h, 0) @ W_dec.T.T + b_dec
    torch.testing.assert_close(sparse, dense)
    leaves = (x, W_enc, b_enc, W_dec, b_dec)
    got = torch.autograd.grad(sparse.square().sum(), leaves)
    expected = torch.autograd.grad(dense.square().sum(), leaves)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_empty_slots_have_no_gradient() -> None:
    h = torch.tensor([[-1.0, 3.0, -2.0, 0.0]], requires_grad=True)
    ops.topk_select(h, 3)[0].sum().backward()
    assert h.grad is not None
    assert h.grad.tolist() == [[0, 1, 0, 0]]


def test_gradients_that_come_expanded() -> None:
    """`sum().backward()` sends a stride-0 gradient."""
    W = leaf(F, D)
    ops.decode_topk(torch.ones(N, K, dtype=F64), IDS, W).sum().backward()
    counts = torch.bincount(IDS.flatten().long(), minlength=F).double()
    torch.testing.assert_close(W.grad, counts[:, None].expand(F, D))


def test_contract_is_not_differentiable() -> None:
    G, W = leaf(2, N, D), leaf(F, D)
    assert not ops.contract(G, ACTS, W).requires_grad


RAW = torch.ops.pullback
OPCHECKS = {
    "topk_select": (RAW.topk_select.default, (leaf(N, F), K, True)),
    "topk_encode": (RAW.topk_encode.default, (leaf(N, D), leaf(F, D, seed=1), leaf(F), K, True)),
    "decode_csr": (RAW.decode_csr.default, (ACTS.indptr, ACTS.indices, leaf(ACTS.nnz), leaf(F, D), leaf(D))),
    "decode_csr without bias": (RAW.decode_csr.default, (ACTS.indptr, ACTS.indices, leaf(ACTS.nnz), leaf(F, D), None)),
    "sampled_dot": (RAW.sampled_dot.default, (leaf(N, D), leaf(F, D), ACTS.indptr, ACTS.indices)),
    "segment_outer": (RAW.segment_outer.default, (ACTS.indptr, ACTS.indices, leaf(ACTS.nnz), leaf(N, D), F)),
    "contract": (
        RAW.contract.default,
        (leaf(2, N, D).detach(), ACTS.indptr, ACTS.indices, ACTS.values, leaf(F, D).detach()),
    ),
}


@pytest.mark.parametrize("name", OPCHECKS)
def test_opcheck(name: str) -> None:
    op, args = OPCHECKS[name]
    torch.library.opcheck(op, args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic: bool) -> None:
    def layer(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        values, indices = ops.topk_encode(x, W_enc, b_enc, K)
        return ops.decode_topk(values, indices, W_dec, b_dec)

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    weights = leaf(F, D, seed=1), leaf(F, seed=2), leaf(F, D, seed=3), leaf(D, seed=4)
    for n in (N, N + 3):
        x = leaf(n, D)
        expected, got = layer(x, *weights), compiled(x, *weights)
        torch.testing.assert_close(got, expected)
        for a, b in zip(
            torch.autograd.grad(got.sum(), (x, *weights)),
            torch.autograd.grad(expected.sum(), (x, *weights)),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_the_sparse_type_passes_through_compile() -> None:
    def edges(acts: SparseActivations, G: Tensor, W: Tensor) -> Tensor:
        return ops.contract(G, acts, W).sum(0) + ops.decode_csr(acts, W).sum()

    torch._dynamo.reset()
    G, W = leaf(2, N, D).detach(), leaf(F, D).detach()
    got = torch.compile(edges, fullgraph=True, backend="aot_eager")(ACTS, G, W)
    torch.testing.assert_close(got, edges(ACTS, G, W))
