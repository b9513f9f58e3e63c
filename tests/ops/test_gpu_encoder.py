"""The GPU encoder: exact whatever the GEMM rounds, on CPU tensors with the reference pieces, and on a GPU with all."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pullback import ops
from pullback.ops import reference, use_backend
from pullback.ops.gpu import encoder as gpu_encoder
from pullback.ops.gpu import table as gpu_table
from tests.ops.cases import ROWS, rows

HALVES = [torch.bfloat16, torch.float16]
WAYS = ["chunks", "tiles"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def encoder(n: int, d: int, F: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    x, W = (torch.randn(rows, d, generator=g).to(dtype) for rows in (n, F))
    return x, W, torch.randn(F, generator=g)


def assert_exact(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor, k: int, relu: bool = True) -> int:
    """The very bits of accumulation in float64, rounded once. Returns how many rows took a full evaluation."""
    before = int(gpu_encoder.uncertain_rows(x.device))
    values, indices = gpu_encoder.topk_encode(x, W, b, k, relu)
    expected = reference.topk_encode(x, W, b, k, relu)
    assert values.dtype == torch.float32
    assert torch.equal(indices, expected[1])
    torch.testing.assert_close(values, expected[0], rtol=0, atol=0, equal_nan=True)
    return int(gpu_encoder.uncertain_rows(x.device)) - before


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(gpu_table, "DEFAULT", gpu_table.Plan(request.param, rows=7, features=300))
    monkeypatch.setattr(gpu_encoder, "SPARE", 8)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("n", "d", "F", "k"), [(9, 24, 3000, 8), (5, 1, 40, 40), (15, 131, 5000, 20), (2, 16, 1, 1)])
def test_exact(way: str, dtype: torch.dtype, relu: bool, n: int, d: int, F: int, k: int) -> None:
    with use_backend("reference"):
        assert_exact(*encoder(n, d, F, dtype), k, relu)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 9), d=st.integers(1, 20), F=st.integers(1, 900), k=st.integers(1, 30), seed=st.integers(0, 99))
def test_any_shape(n: int, d: int, F: int, k: int, seed: int) -> None:
    with use_backend("reference"):
        assert_exact(*encoder(n, d, F, torch.bfloat16, seed), min(k, F))


def test_near_ties_of_rounded_preactivations_are_settled(way: str) -> None:
    """What the stored pre-activations alone would choose is wrong, and the answer is not."""
    x, W, b = encoder(20, 64, 4000, torch.bfloat16)
    h = torch.addmm(b, x.float(), W.float().T).to(torch.bfloat16)
    rounded = reference.topk_select(h.float(), 12, True)[1]
    assert not torch.equal(rounded, reference.topk_encode(x, W, b, 12, True)[1])
    with use_backend("reference"):
        assert assert_exact(x, W, b, 12) < 20


def test_more_competitors_than_candidates_cost_a_full_evaluation(way: str) -> None:
    """Features a few ulps apart: all of them round to one bfloat16."""
    x, W, b = encoder(6, 32, 900, torch.bfloat16)
    W = W[:1].expand(900, -1).contiguous()
    b = 1e-4 * b
    x = x * (x @ W[0]).sign()[:, None]
    with use_backend("reference"):
        assert assert_exact(x, W, b, 12) == 6


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_ties_rows_of_zeros_and_dead_features(way: str, dtype: torch.dtype) -> None:
    x, W, b = encoder(6, 33, 700, dtype)
    x[0] = 0
    W[100:400] = 0
    b[100:400] = 0
    W[500:] = W[500]
    b[500:] = b[500]
    with use_backend("reference"):
        for k in (3, 30, 200):
            assert_exact(x, W, b, k)
        # Without a bias a row of zeros is settled by order of id alone, at no extra cost.
        assert assert_exact(x[:1], W, torch.zeros(700), 30) == 0


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_nan_and_infinity_surface(way: str, dtype: torch.dtype) -> None:
    x, W, b = encoder(4, 33, 700, dtype)
    b[7], b[600] = torch.nan, torch.inf
    with use_backend("reference"):
        assert_exact(x, W, b, 5)
        x[1, 3] = torch.nan
        values, _ = gpu_encoder.topk_encode(x, W, b, 5, True)
    assert bool(values[1].isnan().all())
    assert bool(values[[0, 2, 3]].isnan().sum(1).eq(1).all())


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e12])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_scales(way: str, scale: float, dtype: torch.dtype) -> None:
    x, W, b = encoder(5, 40, 2000, dtype)
    with use_backend("reference"):
        assert assert_exact(x * scale, W, b * scale, 9) < 5


def test_rows_and_features_of_very_different_sizes(way: str) -> None:
    """What float16 cannot hold beside the largest row is uncertain, and exact all the same."""
    x, W, b = encoder(6, 40, 2000, torch.float32)
    x *= torch.tensor([1e-38, 1e-20, 1e-4, 1.0, 1e4, 1e20])[:, None]
    with use_backend("reference"):
        assert_exact(x, W, 0 * b, 9)
        assert_exact(x, W, b, 9)
        W *= torch.logspace(-9, 9, 2000)[:, None]
        assert_exact(x, W, 0 * b, 9)


def test_small_preactivations_of_float16_weights(way: str) -> None:
    """Below the normal numbers of float16 an error is no longer relative."""
    x, W, b = encoder(6, 40, 2000, torch.float16)
    with use_backend("reference"):
        assert_exact(1e-3 * x, 1e-3 * W, 0 * b, 9)
        assert_exact(1e-3 * x, W, 1e-6 * b, 9)


def test_float32_weights_cost_a_16_bit_product(way: str) -> None:
    """Hardly more candidates than k come out of the rounding, so that no row needs all features."""
    x, W, b = encoder(50, 256, 8000, torch.float32)
    with use_backend("reference"):
        assert assert_exact(x, W, b, 20) == 0


def test_a_bias_that_cancels_in_its_own_precision(way: str) -> None:
    """A float32 bias is rounded by the GEMM of "chunks": the error counts, and the values come from the bias itself."""
    x, W, b = (t.float() for t in encoder(1, 40, 2000, torch.bfloat16))
    W = (0.05 * W - 100 * x / x.square().sum()).bfloat16()
    rounded = torch.addmm((100 + b).bfloat16().float(), x, W.float().T)
    assert not torch.equal(reference.topk_select(rounded, 9, True)[1], reference.topk_encode(x, W, 100 + b, 9, True)[1])
    with use_backend("reference"):
        assert_exact(x, W, 100 + b, 9)


def test_sees_through_cancellation(way: str) -> None:
    """Pre-activations a million times smaller than the norms: what the GEMM gives is mostly its own rounding."""
    x, W, b = (t.double() for t in encoder(1, 200, 6000, torch.float32))
    base = W[:1] - (W[:1] @ x.T) / x.square().sum() * x
    x, W, b = x.float(), (base + 1e-7 * W).float(), 1e-7 * b.float()
    by_gemm = reference.topk_select(torch.addmm(b, x, W.T), 30, True)[1]
    assert not torch.equal(by_gemm, reference.topk_encode(x, W, b, 30, True)[1])
    with use_backend("reference"):
        assert assert_exact(x, W, b, 30) == 1


@pytest.mark.parametrize("kind", ROWS)
def test_select_by_tiles_is_the_select(kind: str) -> None:
    for F, k in [(64, 1), (65, 2), (640, 10), (4099, 10), (4099, 64)]:
        h = rows(kind, 3, F, torch.float32, seed=F)
        maxima = torch.nn.functional.pad(h, (0, -F % 64), value=-torch.inf).unflatten(1, (-1, 64)).amax(2)
        got, expected = reference.topk_select_tiles(h, maxima, k, False), reference.topk_select(h, k, False)
        assert torch.equal(got[1], expected[1])
        torch.testing.assert_close(got[0], expected[0], rtol=0, atol=0, equal_nan=True)


def test_scratch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W, b = encoder(50, 4, 3000, torch.float32)
    for way in WAYS:
        monkeypatch.setattr(gpu_table, "DEFAULT", gpu_table.Plan(way, rows=2048, features=8192))
        monkeypatch.setattr(gpu_encoder, "SCRATCH", 100_000)
        new_empty = torch.Tensor.new_empty
        sizes: list[int] = []
        monkeypatch.setattr(
            torch.Tensor,
            "new_empty",
            lambda t, *shape, into=sizes, make=new_empty: (h := make(t, *shape), into.append(h.nbytes))[0],
        )
        with use_backend("reference"):
            assert_exact(x, W, b, 5)
        monkeypatch.undo()
        assert 0 < sum(sizes[: 1 + (way == "tiles")]) <= 100_000


def test_the_table_is_sound() -> None:
    for entry in gpu_table.table():
        assert entry["way"] in WAYS
        assert isinstance(entry["measured"], bool)
        plan = gpu_table.plan(entry["arch"], getattr(torch, entry["dtype"]), entry["d"], entry["F"])
        assert (plan.way, plan.rows, plan.features) == (entry["way"], entry["rows"], entry["features"])
    assert gpu_table.plan("sm_70", torch.float32, 10, 10) == gpu_table.DEFAULT
    assert json.loads(gpu_table.TABLE.read_text()) == gpu_table.table()


def test_half_precision_through_the_op_and_its_gradients() -> None:
    """The op as a GPU calls it: weights in bfloat16, values and coefficients in float32, gradients in each dtype."""
    x, W, b = encoder(6, 16, 200, torch.bfloat16)
    leaves = [t.clone().requires_grad_() for t in (x, W, b)]
    wide = [t.float().requires_grad_() for t in (x, W, b)]
    with use_backend("reference"):
        results = [torch.ops.pullback.topk_encode(*ts, 9, True) for ts in (leaves, wide)]
        for values, _ in results:
            (values**2).sum().backward()
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    for half, full in zip(leaves, wide, strict=True):
        assert half.grad is not None
        assert half.grad.dtype == half.dtype
        torch.testing.assert_close(half.grad.float(), full.grad, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("n", "d", "F", "k"), [(300, 768, 24576, 32), (33, 131, 5000, 1), (7, 40, 9000, 200)])
def test_exact_on_gpu(
    way: str, dtype: torch.dtype, n: int, d: int, F: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_table, "plan", lambda *_: gpu_table.Plan(way, rows=128, features=8192))
    x, W, b = (t.cuda() for t in encoder(n, d, F, dtype))
    W *= 1.5
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for tf32 in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            assert assert_exact(x, W, b, k) < n
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.gpu
@needs_gpu
def test_uncertain_rows_on_gpu() -> None:
    x, W, b = (t.cuda() for t in encoder(6, 32, 900, torch.bfloat16))
    W = W[:1].expand(900, -1).contiguous()
    x = x * (x @ W[0]).sign()[:, None]
    assert assert_exact(x, W, 1e-4 * b, 12) == 6


@pytest.mark.gpu
@needs_gpu
def test_bfloat16_weights_train_on_gpu() -> None:
    """Encode, decode and every gradient, against the same in float32 on the CPU."""
    x, W, b = encoder(40, 64, 3000, torch.bfloat16)
    results = []
    for device in ("cuda", "cpu"):
        leaves = [t.to(device).clone().requires_grad_() for t in (x, W, b, W)]
        values, indices = ops.topk_encode(*leaves[:3], k=16)
        out = ops.decode_topk(values, indices, leaves[3])
        (out**2).sum().backward()
        results.append([out.detach().cpu(), *(leaf.grad.cpu().float() for leaf in leaves if leaf.grad is not None)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


# ---- the bound, term by term ----


def errors(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor, h: torch.Tensor | None = None) -> torch.Tensor:
    """What the stored pre-activations are off by, in units of what the bound allows; b[0] is a power of two."""
    screen = gpu_encoder._screen(x, W, b)
    scale = float(screen.b[0] / b[0])
    if h is None:
        h = screen.x.double() @ screen.W.double().T + screen.b.double()
    stored = h.to(screen.x.dtype).double()
    exact = scale * (x.double() @ W.double().T + b.double())
    allowed = gpu_encoder._RELATIVE[screen.x.dtype] * stored.abs() + screen.slack[:, None].double()
    return (stored - exact).abs() / allowed


@pytest.mark.parametrize("side", ["x", "W", "both"])
def test_the_bound_counts_what_rounding_took_from_either_operand(side: str) -> None:
    """Numbers halfway between two of float16, whose products nearly cancel while all their errors add up."""
    u = 2.0**-11
    down, up = torch.full((500,), 1 + u), torch.full((500,), 1 + 3 * u)  # to 1, to 1 + 4u
    odd, even = torch.cat([down, up]), torch.ones(1000)
    signs = torch.cat([torch.ones(500), -torch.ones(500)])
    x, w = (odd if side in (name, "both") else even for name in ("x", "W"))
    b = torch.tensor([1.0, 0.0])
    off = errors(x[None], torch.stack([signs * w, -signs * w]), b)
    assert float(off.max()) <= 1
    assert float(off.max()) > 0.6  # and is hardly larger than it has to be


def test_the_bound_counts_sums_that_chop() -> None:
    """d products of one sign, each sum cut off where it does not fit float32."""
    d = 20000
    x, W, b = torch.ones(1, d).half(), torch.ones(1, d).half(), torch.ones(1)
    chopped = (d + 1) * (1 - d * 2.0**-23) * torch.ones(1, 1, dtype=torch.float64)
    assert 0.3 < float(errors(x, W, b, chopped).max()) <= 1


def test_the_bound_counts_what_is_below_the_normal_numbers() -> None:
    """A product halfway between the two smallest numbers of float16."""
    x, W = torch.tensor([[2.0**-12]]).half(), torch.tensor([[1.0], [1.5 * 2.0**-12]]).half()
    off = errors(x, W, torch.tensor([2.0**-10, 0.0]))
    assert float(off.max()) <= 1
    assert float(off[0, 1]) > 0.1
