"""Sampled dots, segment sums and contractions in Triton: interpreted everywhere, compiled where there is a GPU."""

from __future__ import annotations

import pytest
import torch

from pullback.ops import reference
from tests.ops.cases import assert_sums, pattern
from tests.ops.interpreter import run_interpreted

pytest.importorskip("triton", reason="triton is not installed")


def test_in_the_interpreter() -> None:
    run_interpreted("triton_sparse_interpreted.py")


def test_cpu_tensors_are_refused_outside_the_interpreter() -> None:
    from pullback.ops import triton as backend

    acts = pattern(2, 5, 3, torch.float32, seed=0)
    G, W = torch.zeros(1, 2, 4), torch.zeros(5, 4)
    with pytest.raises(ValueError, match=r"contract \(triton\): tensors must be on a CUDA device, got cpu"):
        backend.contract(G, acts.indptr, acts.indices, acts.values, W)
    with pytest.raises(ValueError, match=r"sampled_dot \(triton\): tensors must be on a CUDA device, got cpu"):
        backend.sampled_dot(G[0], W, acts.indptr, acts.indices)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "F", "d", "most"), [(7, 50, 33, 9), (64, 500, 768, 70), (130, 2000, 264, 3)])
class TestOnGpu:
    def test_sampled_dot(self, dtype: torch.dtype, n: int, F: int, d: int, most: int) -> None:
        from pullback.ops import triton as backend

        acts = pattern(n, F, most, torch.float32, seed=1)
        g, W = torch.randn(n, d).to(dtype), torch.randn(F, d).to(dtype)
        got = backend.sampled_dot(*(t.cuda() for t in (g, W, acts.indptr, acts.indices)))
        at = acts.indptr, acts.indices
        size = reference.sampled_dot(g.double().abs(), W.double().abs(), *at)
        assert_sums(got.cpu(), reference.sampled_dot(g.double(), W.double(), *at), size, d)

    def test_segment_outer(self, dtype: torch.dtype, n: int, F: int, d: int, most: int) -> None:
        from pullback.ops import triton as backend

        wide = torch.float64 if dtype == torch.float64 else torch.float32
        acts, x = pattern(n, F, most, wide, seed=1), torch.randn(n, d).to(dtype)
        got, again = (
            backend.segment_outer(*(t.cuda() for t in (acts.indptr, acts.indices, acts.values, x)), F) for _ in range(2)
        )
        assert torch.equal(got, again)
        at = acts.indptr, acts.indices
        size = reference.segment_outer(*at, acts.values.double().abs(), x.double().abs(), F)
        assert_sums(got.cpu(), reference.segment_outer(*at, acts.values.double(), x.double(), F), size, n)

    @pytest.mark.parametrize("b", [1, 50, 200])
    def test_contract(self, dtype: torch.dtype, n: int, F: int, d: int, most: int, b: int) -> None:
        from pullback.ops import triton as backend

        acts = pattern(n, F, most, torch.float32, seed=1)
        G, W = torch.randn(b, n, d).to(dtype), torch.randn(F, d).to(dtype)
        got = backend.contract(*(t.cuda() for t in (G, acts.indptr, acts.indices, acts.values, W)))
        at = acts.indptr, acts.indices
        expected = reference.contract(G.double(), *at, acts.values.double(), W.double())
        size = reference.contract(G.double().abs(), *at, acts.values.double().abs(), W.double().abs())
        # The matrix units chop where IEEE rounds, and three TF32 parts hold 22 of 24 bits: four times the bound.
        assert_sums(got.cpu(), expected, 4 * size, d + 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_contract_adds_the_layers_of_a_cross_layer_dictionary() -> None:
    from pullback.ops import triton as backend

    acts = pattern(9, 80, 20, torch.float32, seed=1)
    G, W = torch.randn(3, 70, 9, 64), torch.randn(80, 3, 64)
    before = torch.randn(70, acts.nnz)
    got = backend.contract(*(t.cuda() for t in (G, acts.indptr, acts.indices, acts.values, W, before.clone())))
    parts = [reference.contract(G[l], acts.indptr, acts.indices, acts.values, W[:, l]) for l in range(3)]
    torch.testing.assert_close(got.cpu(), before + sum(parts), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("n", "d"), [(1, 1), (8192, 768), (777, 2305)])
def test_column_moments_on_gpu(n: int, d: int) -> None:
    from pullback.ops import triton as backend

    y, center = torch.randn(n, d, device="cuda"), torch.randn(d, device="cuda", dtype=torch.float64)
    got = backend.column_moments(y, center)
    for mine, expected in zip(got, reference.column_moments(y, center), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-9)
    assert all(map(torch.equal, got, backend.column_moments(y, center)))
