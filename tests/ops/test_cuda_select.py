"""The CUDA top-k: the very bits of the stable sort that defines it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pullback.ops import reference
from tests.ops.cases import ROWS, rows
from tests.ops.conftest import Cuda

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tile_maxima(h: Tensor) -> Tensor:
    """The largest of each 64 columns, NaN where one is."""
    return torch.stack([tile.amax(1) for tile in h.split(64, dim=1)], 1)


def assert_same(cuda: Cuda, h: Tensor, k: int, relu: bool, maxima: Tensor | None = None) -> None:
    on_device = h.to(cuda.device)
    values, indices = cuda.ops.topk_select(on_device, k, relu, None if maxima is None else maxima.to(cuda.device))
    expected_values, expected_indices = reference.topk_select(h, k, relu)
    assert indices.dtype == torch.int32
    assert values.dtype == h.dtype
    assert torch.equal(indices.cpu(), expected_indices)
    torch.testing.assert_close(values.cpu(), expected_values, rtol=0, atol=0, equal_nan=True)
    assert not relu or not bool((values.signbit() & ~values.isnan()).any())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ROWS)
def test_adversarial_rows(cuda: Cuda, kind: str, dtype: torch.dtype) -> None:
    for F, k in [(1, 1), (255, 1), (1000, 1000), (1025, 33), (4097, 4), (4099, 1030), (12345, 65)]:
        assert_same(cuda, rows(kind, 2, F, dtype, seed=F + k), k, relu=bool(F % 2))


@settings(max_examples=20)
@given(
    n=st.integers(0, 3),
    F=st.integers(1, 9000),
    share=st.floats(0, 1),
    kind=st.sampled_from(list(ROWS)),
    dtype=st.sampled_from(DTYPES),
    relu=st.booleans(),
    given_maxima=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape(
    cuda: Cuda, n: int, F: int, share: float, kind: str, dtype: torch.dtype, relu: bool, given_maxima: bool, seed: int
) -> None:
    h = rows(kind, n, F, dtype, seed)
    assert_same(cuda, h, max(1, int(share**4 * F)), relu, tile_maxima(h) if given_maxima else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "ties", "everything", "few positive", "constant"])
def test_given_maxima(cuda: Cuda, kind: str, dtype: torch.dtype) -> None:
    for F, k in [(8192, 32), (24576, 32), (8225, 100), (5000, 78), (5000, 79)]:
        h = rows(kind, 2, F, dtype, seed=k)
        assert_same(cuda, h, k, True, tile_maxima(h))


def test_maxima_rounded_upwards_cost_only_time(cuda: Cuda) -> None:
    h = rows("normal", 3, 8192, torch.bfloat16)
    assert_same(cuda, h, 40, True, (tile_maxima(h).float() * 1.5).bfloat16())


@pytest.mark.parametrize("k", [1, 512, 1024, 1365, 4097, 30000])
def test_large_k(cuda: Cuda, k: int) -> None:
    assert_same(cuda, rows("normal", 1, 30000, torch.float32, k), k, False)


def test_nothing_but_winners_at_the_ends(cuda: Cuda) -> None:
    h = torch.zeros(2, 64 * 100 + 3)
    h[0, -1], h[0, 70], h[1, 0] = 1, 2, 3
    assert_same(cuda, h, 3, True)


def test_strided_rows(cuda: Cuda) -> None:
    wide = rows("normal", 4, 5003, torch.float32).to(cuda.device)
    for h in (wide[:, :5000], wide[:, 1:4500], wide[::2]):
        values, indices = cuda.ops.topk_select(h, 20, True)
        expected = reference.topk_select(h.cpu(), 20, True)
        assert torch.equal(indices.cpu(), expected[1])
        assert torch.equal(values.cpu(), expected[0])


def test_rows_far_apart(cuda: Cuda) -> None:
    """Row offsets beyond 2^31 bytes and elements; untouched pages of the buffer cost nothing."""
    stride = 2**31 + 64
    far = torch.empty(stride + 8192, dtype=torch.bfloat16, device=cuda.device).as_strided((2, 8192), (stride, 1))
    h = rows("normal", 2, 8192, torch.bfloat16)
    far.copy_(h)
    values, indices = cuda.ops.topk_select(far, 16, True)
    assert torch.equal(indices.cpu(), reference.topk_select(h, 16, True)[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ROWS)
def test_columns_in_chunks(cuda: Cuda, kind: str, dtype: torch.dtype) -> None:
    for F, k, chunk in [(700, 5, 64), (9000, 40, 3000), (9000, 600, 4100), (3000, 1, 1)][: 3 if kind != "ties" else 4]:
        F = min(F, 40 * chunk)
        h = rows(kind, 2, F, dtype, seed=F)
        parts = h.to(cuda.device).split(chunk, dim=1)
        values, indices = cuda.ops.topk_select(parts[0], k, False)
        for i, part in enumerate(parts[1:], 1):
            cuda.ops.select_running(part, i * chunk, values, indices, relu=i == len(parts) - 1)
        expected = reference.topk_select(h, k, True)
        assert torch.equal(indices.cpu(), expected[1]), (F, k)
        torch.testing.assert_close(values.cpu(), expected[0], rtol=0, atol=0, equal_nan=True)


def test_bad_arguments_are_named(cuda: Cuda) -> None:
    h = torch.zeros(2, 200, device=cuda.device)
    with pytest.raises(ValueError, match=r"topk_select \(cuda\): k must be in 1..F=200, got 201"):
        cuda.ops.topk_select(h, 201, True)
    with pytest.raises(ValueError, match=r"h must be floating \[n, F\], got torch.int32"):
        cuda.ops.topk_select(h.int(), 1, True)
    with pytest.raises(ValueError, match="rows of h must be contiguous"):
        cuda.ops.topk_select(h.T, 1, True)
    with pytest.raises(ValueError, match=r"maxima must be \[2, 4\], got \[2, 3\]"):
        cuda.ops.topk_select(h, 1, True, h[:, :3])
    with pytest.raises(ValueError, match="must be on a CUDA device, got meta"):
        cuda.ops.topk_select(h.to("meta"), 1, True)
    with pytest.raises(ValueError, match=r"k in 1..first_id=2, .* make the first chunk at least k columns wide"):
        cuda.ops.select_running(h, 2, h[:, :3].contiguous(), torch.zeros(2, 3, dtype=torch.int32, device=cuda.device))


def test_float64_takes_the_reference(cuda: Cuda) -> None:
    h = rows("ties", 2, 50, torch.float64)
    assert torch.equal(cuda.ops.topk_select(h, 4, True)[1], reference.topk_select(h, 4, True)[1])


# ---- thresholds ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "F"), [(0, 5), (3, 1), (5, 255), (4, 2048), (3, 4100), (1100, 8)])
@pytest.mark.parametrize("jump", [False, True])
def test_threshold(cuda: Cuda, n: int, F: int, jump: bool, dtype: torch.dtype) -> None:
    h = rows("everything", n, F, dtype, seed=n + F)
    theta = torch.randn(F, generator=torch.Generator().manual_seed(1)) if jump else None
    dense = torch.where(h <= (0 if theta is None else theta), 0, h)
    kept = dense != 0
    on_device = None if theta is None else theta.to(cuda.device)
    indptr, indices, values = (t.cpu() for t in cuda.ops.threshold_select(h.to(cuda.device), on_device))
    assert torch.equal(indptr, torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0)))
    assert torch.equal(indices, kept.nonzero()[:, 1].int())
    torch.testing.assert_close(values, h[kept], rtol=0, atol=0, equal_nan=True)


def test_a_capacity_is_kept_to(cuda: Cuda) -> None:
    h = torch.ones(3, 100, device=cuda.device)
    indptr, indices, values = cuda.ops.threshold_select(h, capacity=150)
    assert indptr.tolist() == [0, 100, 200, 300]
    assert indices.tolist() == [*range(100), *range(50)]
    assert bool((values == 1).all())
