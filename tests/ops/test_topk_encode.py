"""The exact top-k encoder against its definition, through every product that candidates can come from."""

from __future__ import annotations

import pytest
import torch

from pullback import ops
from pullback.ops import reference
from pullback.ops.cpu.screen import evaluate_rows
from pullback.ops.screen import Screen
from tests.ops.cases import FLOATS, PRODUCTS, multiply_in

pytestmark = pytest.mark.usefixtures("blocks")


@pytest.fixture(params=PRODUCTS)
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    multiply_in(request.param, monkeypatch)
    return request.param


def encoder(n: int, d: int, F: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    x, W, b = (torch.randn(*s, generator=g, dtype=dtype) for s in [(n, d), (F, d), (F,)])
    return x, W, b


def assert_encodes(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor, k: int, relu: bool = True) -> None:
    """The very bits of accumulation in float64, rounded once."""
    values, indices = ops.topk_encode(x, W, b, k, relu)
    expected_values, expected_indices = reference.topk_encode(x, W, b, k, relu)
    assert torch.equal(indices, expected_indices)
    rtol = 0 if x.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(values, expected_values, rtol=rtol, atol=rtol, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("n", "d", "F", "k"), [(9, 24, 300, 8), (5, 1, 40, 40), (3, 131, 5000, 7), (2, 16, 1, 1)])
def test_encode(isa: str, product: str, dtype: torch.dtype, relu: bool, n: int, d: int, F: int, k: int) -> None:
    assert_encodes(*encoder(n, d, F, dtype), k, relu)


@pytest.mark.parametrize("F", [400, 6000])
def test_encode_settles_near_ties_that_the_gemm_gets_wrong(isa: str, product: str, F: int) -> None:
    """Decoders a few ulps apart: the order of their float32 products is noise."""
    x, W, b = encoder(6, 200, F, torch.float32)
    W = W[:1] * (1 + 2e-8 * torch.randint(-20, 20, (F, 1)).double()).float() + 1e-8 * W
    b = torch.zeros(F)
    x = x * (x @ W[0]).sign()[:, None]
    by_gemm = reference.topk_select(torch.addmm(b, x, W.T), 9, True)[1]
    assert not torch.equal(by_gemm, reference.topk_encode(x, W, b, 9, True)[1])
    assert_encodes(x, W, b, 9)


@pytest.mark.parametrize("F", [400, 6000])
def test_encode_sees_through_cancellation(isa: str, product: str, F: int) -> None:
    """Pre-activations a million times smaller than the norms: what the GEMM gives is mostly its own rounding."""
    x, W, b = (t.double() for t in encoder(1, 200, F, torch.float32))
    base = W[:1] - (W[:1] @ x.T) / x.square().sum() * x
    x, W, b = x.float(), (base + 1e-7 * W).float(), 1e-7 * b.float()
    by_gemm = reference.topk_select(torch.addmm(b, x, W.T), 30, True)[1]
    assert not torch.equal(by_gemm, reference.topk_encode(x, W, b, 30, True)[1])
    assert_encodes(x, W, b, 30)


def test_encode_degenerate_inputs(isa: str, product: str) -> None:
    """Zero rows, dead features, tiny and huge scales, more slots than positives, equal features."""
    x, W, b = encoder(6, 33, 700, torch.float32)
    x[0] = 0
    W[100:400] = 0
    b[100:400] = 0
    W[500:] = W[500]
    b[500:] = b[500]
    for scale in (1.0, 1e-25, 1e12):
        for k in (3, 30, 650):
            assert_encodes(x * scale, W, b, k)
            assert_encodes(x * scale, W, torch.zeros(700), k)


def test_encode_lets_nan_and_inf_surface(isa: str, product: str) -> None:
    x, W, b = encoder(4, 33, 700, torch.float32)
    x[1, 3] = torch.nan
    x[2, 3] = torch.inf
    values, indices = ops.topk_encode(x, W, b, 5)
    expected = reference.topk_encode(x, W, b, 5, True)
    assert values[1].isnan().all()
    assert values[2].isinf().all()
    assert torch.equal(indices[[0, 1, 3]], expected[1][[0, 1, 3]])
    W[7, 0] = torch.nan
    values, indices = ops.topk_encode(x[:1], W, b, 5)
    assert 7 in indices[0].tolist()
    assert int(values.isnan().sum()) == 1


def cancelling(n: int, d: int, F: int) -> tuple[torch.Tensor, ...]:
    """Sums whose float64 value depends on the order of their terms, by all of it: 1, 2^-60 and -1, anywhere."""
    g = torch.Generator().manual_seed(0)
    W = torch.zeros(F, d)
    places = torch.rand(F, d, generator=g).argsort(dim=1)[:, :3]
    W.scatter_(1, places, torch.tensor([1.0, 2.0**-60, -1.0]).expand(F, 3))
    return torch.ones(n, d), W, torch.zeros(F)


@pytest.mark.parametrize("d", [33, 200])
def test_one_order_of_summation_for_every_set_and_every_way(product: str, d: int) -> None:
    """Accumulated in float64 in any order would be another number here: candidates, whole rows, thresholds, batches,
    and every instruction set agree on one."""
    x, W, b = cancelling(70, d, 300)
    before, found = ops.isa(), []
    try:
        for isa in ops.available_isas():
            ops.set_isa(isa)
            dense = torch.zeros(70, 300)
            found += [dense.scatter(1, ids.long(), v) for v, ids in [ops.topk_encode(x, W, b, 300, relu=False)]]
            values, ids = ops.topk_encode(x, W, b, 5)
            assert torch.equal(values, found[-1].gather(1, ids.long()))
            found += [ops.threshold_encode(x, W, b, -1.0).to_dense()]
            found += [ops.batch_topk_encode(x, W, b, 300).to_dense()]
            found += [evaluate_rows(x[:1], W, b).expand(70, -1)]
    finally:
        ops.set_isa(before)
    assert 20 < found[0][0].count_nonzero() < 280
    for other in found[1:]:
        assert torch.equal(other, found[0])


def test_encode_in_several_chunks() -> None:
    assert_encodes(*encoder(2300, 8, 50, torch.float32), 5)
    x, W, b = encoder(1300, 8, 50, torch.float32)
    assert ops.topk_encode(x[:0], W, b, 5)[0].shape == (0, 5)


@pytest.mark.parametrize(("n", "d", "F", "k"), [(300, 1100, 2000, 16), (33, 31, 700, 40), (64, 32, 96, 3)])
def test_encode_many_rows(product: str, n: int, d: int, F: int, k: int) -> None:
    """Threads share them, and some rows of a panel, features and columns of a tile are missing."""
    x, W, b = encoder(n, d, F, torch.float32)
    x[n // 2, 0] = torch.nan
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for screen in (None, Screen(W)):
                values, ids = ops.topk_encode(x, W, b, k, screen=screen)
                expected = reference.topk_encode(x, W, b, k, True)
                assert torch.equal(ids, expected[1])
                torch.testing.assert_close(values, expected[0], rtol=0, atol=0, equal_nan=True)
    finally:
        torch.set_num_threads(before)


def test_encode_takes_strided_inputs(isa: str, product: str) -> None:
    x, W, b = encoder(12, 48, 600, torch.float32)
    assert_encodes(x[::2, :24], W[:, :24], b, 4)
    assert_encodes(x[:, ::2], W[::2, ::2], b[::2], 4)
    assert_encodes(x[:1].expand(3, -1), W, b[:1].expand(600), 4)


def test_encode_scratch_survives_inference_mode() -> None:
    x, W, b = torch.randn(4, 8), torch.randn(50, 8), torch.randn(50)
    with torch.inference_mode():
        inside = ops.topk_encode(x, W, b, 5)
    outside = ops.topk_encode(x, W, b, 5)
    assert torch.equal(inside[0], outside[0])


def test_encode_names_a_transposed_matrix() -> None:
    x, W, b = torch.randn(4, 8), torch.randn(50, 8), torch.randn(50)
    with pytest.raises(
        ValueError, match=r"topk_encode: W_enc must be \[F, d\]=\[\?, 8\], got \[8, 50\] \(transposed\?\)"
    ):
        ops.topk_encode(x, W.T, b, 5)
    with pytest.raises(ValueError, match=r"b_enc must be \[F\]=\[50\], got \[8\]"):
        ops.topk_encode(x, W, b[:8], 5)
