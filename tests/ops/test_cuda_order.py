"""The CUDA sort of entries by feature: a stable sort, the same every time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pullback.ops import reference
from tests.ops.conftest import Cuda


def assert_sorts(cuda: Cuda, ids: Tensor, F: int) -> None:
    starts, order = cuda.ops.feature_order(ids.to(cuda.device), F)
    expected_starts, expected_order = reference.feature_order(ids, F)
    assert (starts.dtype, order.dtype) == (torch.int64, torch.int32)
    assert torch.equal(starts.cpu(), expected_starts)
    assert torch.equal(order.cpu(), expected_order)


def ids_of(kind: str, nnz: int, F: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    uniform = torch.rand(nnz, generator=g, dtype=torch.float64)
    drawn = {
        "uniform": uniform * F,
        "heavy": uniform**8 * F,
        "one": uniform * 0 + F - 1,
        "two": (uniform > 0.5) * (F - 1),
    }
    return drawn[kind].floor().clamp(0, F - 1).int()


@pytest.mark.parametrize("kind", ["uniform", "heavy", "one", "two"])
@pytest.mark.parametrize("F", [1, 2, 255, 256, 257, 24576, 65536, 131072, 2**20, 2**24 + 1])
def test_digits_and_tiles(cuda: Cuda, F: int, kind: str) -> None:
    if cuda.device == "cpu" and F > 2**18:
        pytest.skip("a thread a feature takes the host too long")
    assert_sorts(cuda, ids_of(kind, 7000, F), F)


@settings(max_examples=20)
@given(
    nnz=st.integers(0, 5000),
    F=st.integers(1, 70000),
    kind=st.sampled_from(["uniform", "heavy"]),
    seed=st.integers(0, 99),
)
def test_any_size(cuda: Cuda, nnz: int, F: int, kind: str, seed: int) -> None:
    assert_sorts(cuda, ids_of(kind, nnz, F, seed), F)


@pytest.mark.parametrize("nnz", [0, 1, 31, 32, 255, 2047, 2048, 2049, 4096])
def test_edges_of_tiles(cuda: Cuda, nnz: int) -> None:
    assert_sorts(cuda, ids_of("uniform", nnz, 300), 300)


def test_more_tiles_than_a_block_has_threads(cuda: Cuda) -> None:
    assert_sorts(cuda, ids_of("heavy", 2048 * 257 + 5, 200), 200)


def test_ids_out_of_range_come_last(cuda: Cuda) -> None:
    ids = torch.tensor([3, -1, 0, 9, 3, 5, 2**31 - 1, 0], dtype=torch.int32)
    starts, order = cuda.ops.feature_order(ids.to(cuda.device), 5)
    assert starts.tolist() == [0, 2, 2, 2, 4, 4]
    assert order.tolist() == [2, 7, 0, 4, 1, 3, 5, 6]


def test_repeats_bit_for_bit(cuda: Cuda) -> None:
    ids = ids_of("heavy", 9000, 1000).to(cuda.device)
    first = cuda.ops.feature_order(ids, 1000)
    for _ in range(3):
        assert all(map(torch.equal, first, cuda.ops.feature_order(ids, 1000)))
