"""Huge pages change how memory is backed, never what is in it; memory is used again when nobody holds it."""

from __future__ import annotations

import pytest
import torch

from pullback import _C, ops
from pullback.ops.cpu.borrow import view
from pullback.ops.cpu.pages import LARGE, Pool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (3,), (700, 3000), (5_000_003,)])
def test_contents_stay(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    t = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).remainder(251).to(dtype).view(shape)
    before = t.clone()
    assert ops.on_huge_pages(t) is t
    _C.prefer_huge_pages(view(t))
    assert torch.equal(t, before)


def test_memory_with_gaps_is_refused() -> None:
    with pytest.raises(ValueError, match="prefer_huge_pages: memory must be contiguous"):
        _C.prefer_huge_pages(view(torch.zeros(4, 6)[:, ::2]))


ROWS = LARGE // 4000 + 1


def test_memory_is_used_again_only_when_no_tensor_shares_it() -> None:
    pool, like = Pool(), torch.zeros(1)
    first = pool.empty(like, ROWS, 1000)
    assert first.shape == (ROWS, 1000)
    assert first.dtype == torch.float32
    address = first.data_ptr()
    part = first.detach()[3:7]
    del first
    second = pool.empty(like, ROWS, 1000)
    assert second.data_ptr() != address
    del part
    third = pool.empty(like, ROWS, 1000)
    assert third.data_ptr() == address
    assert pool.nbytes == 2 * ROWS * 4000


def test_free_memory_that_does_not_fit_goes_back() -> None:
    pool, like = Pool(), torch.zeros(1, dtype=torch.float64)
    kept, dropped = pool.empty(like, ROWS, 500), pool.empty(like, ROWS, 501)
    del dropped
    pool.empty(like, ROWS, 600)
    assert pool.nbytes == kept.nbytes + ROWS * 600 * 8
    pool.release()
    assert pool.nbytes == kept.nbytes
    assert pool.empty(like, 7, 3).shape == (7, 3)
    assert pool.nbytes == kept.nbytes


def test_gradients_land_where_those_of_the_step_before_lay() -> None:
    W = torch.nn.Parameter(torch.randn(ROWS, 1000))
    indptr, ids = torch.tensor([0, 2]), torch.tensor([1, 5])
    addresses = set()
    for step in range(3):
        W.grad = None
        ops.decode_csr(
            ops.SparseActivations(indptr, ids.int(), torch.tensor([1.0, step + 2.0]), ROWS), W
        ).sum().backward()
        assert W.grad is not None
        assert W.grad[5, 0] == step + 2
        assert W.grad.sum() == 1000 * (step + 3)
        addresses.add(W.grad.data_ptr())
    assert len(addresses) == 1
