"""Exact top-k: the same bits as the stable sort that defines it, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pullback import ops
from pullback.ops import reference
from tests.ops.cases import FLOATS, ROWS, rows


def assert_same(h: torch.Tensor, k: int, relu: bool) -> None:
    values, indices = ops.topk_select(h, k, relu)
    expected_values, expected_indices = reference.topk_select(h, k, relu)
    assert indices.dtype == torch.int32
    assert torch.equal(indices, expected_indices)
    torch.testing.assert_close(values, expected_values, rtol=0, atol=0, equal_nan=True)
    # Relevant to zeros: assert_close calls 0.0 and -0.0 equal.
    assert not relu or not bool((values.signbit() & ~values.isnan()).any())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ROWS)
def test_adversarial_rows(isa: str, kind: str, dtype: torch.dtype) -> None:
    for F, k in [(1, 1), (17, 1), (64, 64), (100, 33), (1000, 4), (1000, 31), (4099, 10), (4099, 4099), (30000, 5)]:
        for relu in (True, False):
            assert_same(rows(kind, 3, F, dtype, seed=F + k), k, relu)


@given(
    n=st.integers(0, 5),
    F=st.integers(1, 3000),
    share=st.floats(0, 1),
    kind=st.sampled_from(list(ROWS)),
    dtype=st.sampled_from(FLOATS),
    relu=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape(
    isa: str, n: int, F: int, share: float, kind: str, dtype: torch.dtype, relu: bool, seed: int
) -> None:
    assert_same(rows(kind, n, F, dtype, seed), max(1, int(share**4 * F)), relu)


def test_duplicated_maxima_in_every_block(isa: str) -> None:
    """All blocks reach the bound: the candidates are the whole row, and the tie rule alone decides."""
    h = torch.zeros(2, 4096)
    h[:, ::16] = 1
    values, indices = ops.topk_select(h, 20)
    assert torch.equal(indices[0], torch.arange(0, 320, 16, dtype=torch.int32))
    assert bool((values == 1).all())


def test_the_tail_block_counts(isa: str) -> None:
    h = torch.zeros(1, 64 * 64 + 3)
    h[0, -1] = 1
    h[0, 70] = 2
    values, indices = ops.topk_select(h, 2)
    assert indices.tolist() == [[70, 64 * 64 + 2]]
    assert values.tolist() == [[2, 1]]
    for last in (-1, -3):
        h[0, last] = torch.nan
        assert_same(h, 2, True)


def test_fewer_positives_than_k_leaves_empty_slots() -> None:
    values, _ = ops.topk_select(torch.tensor([[-1.0, 3.0, -2.0, -0.0]]), 3)
    assert sorted(values[0].tolist()) == [0, 0, 3]


def test_strided_rows_and_half_precision(isa: str) -> None:
    h = rows("normal", 6, 400, torch.float32)
    for view in (h[:, ::2], h.T[:5], h[::2], h[:1].expand(4, -1)):
        assert_same(view, 4, True)
    for dtype in (torch.bfloat16, torch.float16):
        values, indices = ops.topk_select(h.to(dtype), 7)
        assert values.dtype == torch.float32
        expected = reference.topk_select(h.to(dtype).float(), 7, True)
        assert torch.equal(values, expected[0])
        assert torch.equal(indices, expected[1])


def test_more_elements_than_an_int32_counts(isa: str) -> None:
    """2^31 pre-activations and more, all in one row of memory: offsets must be 64-bit."""
    F, n = 1 << 20, 2100
    h = torch.zeros(1, F)
    h[0, F - 1] = 1
    values, indices = ops.topk_select(h.expand(n, F)[-3:], 1)
    assert indices.tolist() == [[F - 1]] * 3
    # Rows far apart in memory: the last starts beyond 2^31 bytes (2^29 floats).
    apart = torch.empty((1 << 29) + 2048)
    far = apart.as_strided((2, 1024), (1 << 29, 1))
    far[0], far[1] = torch.arange(1024), torch.arange(1024, 0, -1)
    assert ops.topk_select(far, 1)[1].tolist() == [[1023], [0]]


def test_bad_arguments_are_named() -> None:
    h = torch.zeros(2, 5)
    with pytest.raises(ValueError, match=r"topk_select: h must be \[n, F\], got \[5\]"):
        ops.topk_select(h[0], 1)
    for k in (0, -1, 6):
        with pytest.raises(ValueError, match=rf"topk_select: k must be in 1..F=5, got {k}"):
            ops.topk_select(h, k)
    with pytest.raises(ValueError, match="floating point"):
        ops.topk_select(h.int(), 1)
