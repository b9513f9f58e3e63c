"""The certified screen: its intervals hold, on rows made to break them, and what they cannot settle is not guessed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pullback import ops
from pullback.ops import reference
from pullback.ops.cpu import encoders as screened
from pullback.ops.cpu import screen as kernels
from pullback.ops.screen import Screen, makes_tiles
from tests.ops.cases import PRODUCTS, multiply_in

pytestmark = pytest.mark.usefixtures("blocks")


def canonical(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Accumulated in float64, rounded once."""
    return torch.addmm(b.double(), x.double(), W.double().T).float()


def _normal(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g)


def _rounds_one_way(*shape: int, g: torch.Generator) -> Tensor:
    """Every element just below the middle of two bfloat16: all lose nearly half a unit, in the same direction."""
    whole = torch.randint(128, 256, shape, generator=g) / 128.0
    return whole * (1 + 2.0**-9 * (1 - 2.0**-10)) * torch.where(torch.rand(shape, generator=g) < 0.5, -1.0, 1.0)


def _heavy(*shape: int, g: torch.Generator) -> Tensor:
    """A few elements carry nearly everything."""
    return torch.randn(*shape, generator=g) * torch.exp(4 * torch.randn(*shape, generator=g))


def _denormal(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g) * 2.0**-126


def _scales(*shape: int, g: torch.Generator) -> Tensor:
    """Rows from 2^-40 to 2^40."""
    return torch.randn(*shape, generator=g) * 2.0 ** torch.randint(-40, 41, (shape[0], 1), generator=g)


def _few_values(*shape: int, g: torch.Generator) -> Tensor:
    """Exact ties by the dozen."""
    return torch.randint(-1, 2, shape, generator=g).float()


KINDS: dict[str, Callable[..., Tensor]] = {
    "normal": _normal,
    "rounds one way": _rounds_one_way,
    "heavy": _heavy,
    "denormal": _denormal,
    "scales": _scales,
    "few values": _few_values,
}


def case(x_kind: str, W_kind: str, n: int, d: int, F: int, bias: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return KINDS[x_kind](n, d, g=g), KINDS[W_kind](F, d, g=g), bias * torch.randn(F, generator=g)


cases = st.fixed_dictionaries(
    {
        "x_kind": st.sampled_from(list(KINDS)),
        "W_kind": st.sampled_from(list(KINDS)),
        "n": st.sampled_from([1, 2, 5, 40]),
        "d": st.sampled_from([1, 2, 7, 16, 33, 128, 300]),
        "F": st.sampled_from([1, 3, 64, 65, 200, 700]),
        "bias": st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
        "seed": st.integers(0, 2**16),
    }
)


@pytest.mark.parametrize("product", PRODUCTS)
@settings(deadline=None, max_examples=60)
@given(case_=cases)
def test_intervals_hold_the_truth(product: str, case_: dict) -> None:
    assert_held(*case(**case_), product)


@pytest.mark.parametrize("product", PRODUCTS)
def test_intervals_hold_what_a_bias_leaves_of_a_product(product: str) -> None:
    """Factors that bfloat16 holds, so that only the product is rounded, and a bias that takes nearly all of it away."""
    g = torch.Generator().manual_seed(0)
    x, W = (torch.randint(128, 256, (rows, 40), generator=g) / 128.0 for rows in (5, 300))
    assert_held(x, W, -canonical(x, W, torch.zeros(300))[0], product)


@pytest.mark.parametrize("product", PRODUCTS)
def test_intervals_hold_sums_that_cancel(product: str) -> None:
    """Factors that bfloat16 holds, so that only the accumulation rounds: far more than is left of the terms."""
    g = torch.Generator().manual_seed(0)
    sizes = 2.0 ** torch.randint(-8, 9, (305, 150), generator=g)
    x, W = (torch.randint(128, 256, (305, 150), generator=g) / 128.0 * sizes).split((5, 300))
    x, W = torch.cat((x, x), dim=1), torch.cat((W, -W * (1 + 2.0**-7)), dim=1).bfloat16().float()
    assert_held(x, W, torch.zeros(300), product)


@pytest.mark.parametrize("product", PRODUCTS)
def test_intervals_hold_sums_of_subnormal_products(product: str) -> None:
    """Processors take them for zero in a bfloat16 product."""
    g = torch.Generator().manual_seed(0)
    x, W = (torch.randint(128, 256, (rows, 300), generator=g) * 2.0**-77 for rows in (5, 300))
    assert canonical(x, W, torch.zeros(300)).count_nonzero() == 1500
    assert_held(x, W, torch.zeros(300), product)


def assert_held(x: Tensor, W: Tensor, b: Tensor, product: str) -> None:
    """With no threshold every feature is a candidate, so every interval can be looked at."""
    h = canonical(x, W, b)
    with pytest.MonkeyPatch.context() as patch:
        multiply_in(product, patch)
        lowest = torch.full((len(W),), -3e38)
        for _, held in screened._sifted(x, W, b, len(W), theta=lowest):
            for n in (held.counts >= 0).nonzero().flatten().tolist():
                assert held.counts[n] == len(W)
                assert torch.equal(held.ids[n, : len(W)].long(), torch.arange(len(W)))
                assert (held.lows[n, : len(W)] <= h[n]).all()
                assert (held.highs[n, : len(W)] >= h[n]).all()


@settings(deadline=None, max_examples=150)
@given(case_=cases, k=st.integers(1, 40), relu=st.booleans())
def test_topk_is_exact_on_adversarial_rows(case_: dict, k: int, relu: bool) -> None:
    x, W, b = case(**case_)
    k = min(k, len(W))
    values, indices = reference.topk_select(canonical(x, W, b), k, relu)
    for screen in (None, Screen(W)):
        got = ops.topk_encode(x, W, b, k, relu, screen=screen)
        assert torch.equal(got[1], indices)
        assert torch.equal(got[0], values)


@settings(deadline=None, max_examples=100)
@given(case_=cases, quantile=st.floats(0.0, 1.0), each=st.booleans())
def test_thresholds_are_exact_on_adversarial_rows(case_: dict, quantile: float, each: bool) -> None:
    x, W, b = case(**case_)
    h = canonical(x, W, b)
    # A threshold that is one of the values: the feature it came from must not pass.
    theta = h.flatten().sort().values[int(quantile * (h.numel() - 1))]
    thetas = h[0] if each else theta.expand(len(W))
    expected = torch.where(h > thetas, h, 0)
    for screen in (None, Screen(W)):
        acts = ops.threshold_encode(x, W, b, thetas if each else float(theta), screen).validate()
        assert torch.equal(acts.to_dense(), expected)


def test_a_zero_above_a_negative_threshold_is_not_stored() -> None:
    W = torch.tensor([[0.0], [-1.0], [1.0], [-3.0]])
    acts = ops.threshold_encode(torch.ones(2, 1), W, torch.zeros(4), -2.0).validate()
    assert acts.indices.tolist() == [1, 2, 1, 2]


@settings(deadline=None, max_examples=100)
@given(case_=cases, k=st.integers(1, 40))
def test_batch_topk_is_exact_on_adversarial_rows(case_: dict, k: int) -> None:
    x, W, b = case(**case_)
    positive = canonical(x, W, b).clamp(min=0)
    order = positive.flatten().sort(descending=True, stable=True).indices[: min(k, len(W)) * len(x)]
    expected = torch.zeros_like(positive).flatten().scatter(0, order, positive.flatten()[order]).view_as(positive)
    for screen in (None, Screen(W)):
        assert torch.equal(ops.batch_topk_encode(x, W, b, k, screen).to_dense(), expected)


def test_batch_topk_lets_nan_surface_within_its_budget() -> None:
    """A NaN in one input makes every pre-activation of its row NaN: more than the batch may keep."""
    x = torch.ones(5, 3)
    x[2, 1] = math.nan
    acts = ops.batch_topk_encode(x, torch.randn(200, 3), torch.zeros(200), 30)
    assert acts.indptr.tolist() == [0, 0, 0, 150, 150, 150]
    assert acts.indices.tolist() == list(range(150))
    assert acts.values.isnan().all()


def test_no_rows_give_no_rows() -> None:
    x, W, b = torch.randn(4, 16), torch.randn(50, 8), torch.randn(50)
    for none in (x[:0, :8], x[:0, ::2]):
        assert ops.batch_topk_encode(none, W, b, 3).shape == (0, 50)
        assert ops.threshold_encode(none, W, b).shape == (0, 50)
        assert ops.topk_encode(none, W, b, 3)[1].shape == (0, 3)


def test_no_features_are_refused() -> None:
    x, W, b = torch.randn(4, 8), torch.randn(0, 8), torch.randn(0)
    for encode in (ops.topk_encode, ops.batch_topk_encode, ops.threshold_encode):
        with pytest.raises(ValueError, match=r"encode: W_enc must have a feature, got \[0, 8\]"):
            encode(x, W, b, 1)


def test_nothing_is_above_a_threshold_that_is_nan() -> None:
    """Whether the bound settles the row or not; but a NaN among the pre-activations surfaces."""
    W, theta = torch.ones(70, 2), torch.zeros(70)
    theta[3] = math.nan
    x = torch.tensor([[1.0, 2.0], [math.inf, 1.0], [math.nan, 1.0]])
    before = ops.screen_counts().unsettled
    acts = ops.threshold_encode(x, W, torch.zeros(70), theta)
    assert ops.screen_counts().unsettled - before == 2
    assert acts.indptr.diff().tolist() == [69, 69, 70]


def test_batch_topk_asks_again_where_one_row_holds_nearly_everything() -> None:
    g = torch.Generator().manual_seed(0)
    x, W, b = torch.randn(90, 24, generator=g), torch.randn(5000, 24, generator=g), torch.zeros(5000)
    x[7] *= 50
    acts = ops.batch_topk_encode(x, W, b, 10)
    positive = canonical(x, W, b).clamp(min=0)
    order = positive.flatten().sort(descending=True, stable=True).indices[:900]
    assert torch.equal(acts.to_dense().flatten().nonzero().flatten(), order.sort().values)
    assert acts.indptr.diff()[7] > 800


@pytest.mark.parametrize("F", [700, 9000])
def test_rounding_to_bfloat16_alone_would_be_wrong(F: int) -> None:
    """The case is worth something: the product that the screen sees chooses other features."""
    x, W, b = case("rounds one way", "rounds one way", 70, 256, F, 0.0, 1)
    expected = reference.topk_select(canonical(x, W, b), 16, True)[1]
    rounded = reference.topk_select((x.bfloat16() @ W.bfloat16().T).float(), 16, True)[1]
    assert not torch.equal(rounded, expected)
    assert torch.equal(ops.topk_encode(x, W, b, 16, screen=Screen(W))[1], expected)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("place", [100, 600])
def test_the_bound_of_some_does_not_shut_out_others(product: str, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that lost all they can to rounding are foremost; behind them come as many that gained all they can."""
    multiply_in(product, monkeypatch)
    W, b = torch.zeros(700, 64), torch.zeros(700)
    W[4:52:4] = 1 + 2.0**-8 * (1 + 2.0**-6)
    W[place : place + 12] = 1 + 2.0**-8 * (1 - 2.0**-6)
    b[place : place + 12] = 2.0**-6
    values, ids = ops.topk_encode(torch.ones(3, 64), W, b, 12)
    assert torch.equal(ids, torch.arange(place, place + 12, dtype=torch.int32).expand(3, -1))
    assert torch.equal(values, canonical(torch.ones(3, 64), W, b)[:, place : place + 12])


@pytest.mark.parametrize("product", PRODUCTS)
def test_sums_that_overflow_on_the_way_are_computed_whole(product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors and what they come to are finite, and their bound is small; the float32 sums between are not."""
    multiply_in(product, monkeypatch)
    x, W, b = torch.full((3, 4), 4.0), torch.randn(200, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(200)
    W[70] = torch.tensor([-8.0, 9.0, -8.0, 9.0]) * 2.0**123
    expected = reference.topk_select(canonical(x, W, b), 5, True)
    values, ids = ops.topk_encode(x, W, b, 5)
    assert (ids == 70).any(dim=1).all()
    assert torch.equal(ids, expected[1])
    assert torch.equal(values, expected[0])


def test_unsettled_rows_are_counted_and_right() -> None:
    """A thousand equal features: no bound separates them, the definition does."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 40, generator=g).expand(3, -1).contiguous()
    W = x[:1].expand(3000, -1).contiguous()
    W[::3] = torch.randn(1000, 40, generator=g)
    b = torch.zeros(3000)
    before = ops.screen_counts()
    got = ops.topk_encode(x, W, b, 5, screen=Screen(W))
    after = ops.screen_counts()
    expected = reference.topk_select(canonical(x, W, b), 5, True)
    assert after.rows - before.rows == 3
    assert after.unsettled - before.unsettled == 3
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[0], expected[0])


def test_ordinary_rows_are_settled_by_few_evaluations() -> None:
    g = torch.Generator().manual_seed(0)
    x, W, b = torch.randn(200, 128, generator=g), torch.randn(8192, 128, generator=g), torch.zeros(8192)
    before = ops.screen_counts()
    ops.topk_encode(x, W, b, 32, screen=Screen(W))
    after = ops.screen_counts()
    assert after.unsettled == before.unsettled
    assert after.evaluated - before.evaluated < 200 * 4 * 32


def test_lower_precision_of_torch_changes_nothing() -> None:
    x, W, b = case("rounds one way", "rounds one way", 9, 200, 900, 0.1, 3)
    expected = ops.topk_encode(x, W, b, 12)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        got = ops.topk_encode(x, W, b, 12)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_a_precision_set_by_torchs_newer_names_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch then refuses to say it by the older one."""
    x, W, b = case("rounds one way", "rounds one way", 9, 200, 900, 0.1, 3)
    monkeypatch.setattr(screened, "multiplies_bf16", lambda: False)
    expected = ops.topk_encode(x, W, b, 12)

    def refuse() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    assert screened._unrounded(W).rests is not None
    got = ops.topk_encode(x, W, b, 12)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("name", screened.FPMATH)
def test_a_precision_set_in_the_environment_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    W = torch.randn(9, 20)
    for mode, rounds in (("STRICT", False), ("", False), ("bf16", True), ("ANY", True)):
        monkeypatch.setenv(name, mode)
        assert (screened._unrounded(W).rests is not None) == rounds


@pytest.mark.parametrize("d", [1, 15, 16, 17, 70, 600])
def test_shadow(isa: str, d: int) -> None:
    W = torch.randn(50, d, generator=torch.Generator().manual_seed(d)) * 2.0 ** torch.arange(-25, 25)[:, None]
    W[0] = 2.0**-130
    W[1] = -W[1]
    W[2, 0] = 3.4e38
    screen = Screen(W)
    flushed = torch.where(W.bfloat16().float().abs() < 2.0**-126, 0.0, W.bfloat16().float())
    assert torch.equal(screen.W16.float(), flushed)
    finite = flushed.isfinite().all(1)
    for bound, rows in ((screen.norms, W), (screen.rests, W - flushed)):
        norms = rows.double().norm(dim=1)
        assert (bound.double() >= norms)[finite].all()
        assert (bound.double() <= norms * (1 + 2.0**-18) + 1e-45)[finite].all()
    assert not screen.rests[2].isfinite()


@pytest.mark.parametrize("d", [2, 70, 600])
@pytest.mark.parametrize("one", [0.0, 1.0])
def test_bounds_of_a_shadow_hold_where_squares_leave_float32(isa: str, d: int, one: float) -> None:
    W = torch.randn(270, d, generator=torch.Generator().manual_seed(d)) * 2.0 ** torch.arange(-147, 123)[:, None]
    W[:, 0] += one
    screen = Screen(W)
    for bound, rows in ((screen.norms, W), (screen.rests, W - screen.W16.float())):
        norms = rows.double().norm(dim=1)
        assert (bound.double() >= norms).all()
        assert (bound.double() <= norms * (1 + 2.0**-18) + d**0.5 * 2.0**-62 + 1e-45).all()


@pytest.mark.parametrize("d", [1, 70])
def test_norms_are_never_below_the_truth(isa: str, d: int) -> None:
    """Not where they are subnormal either: rounding to the nearest would halve the smallest."""
    rows = torch.rand(300, d, generator=torch.Generator().manual_seed(d)) * 2.0 ** -torch.arange(-126, 174)[:, None]
    assert (kernels.norm_rows(rows).double() >= rows.double().norm(dim=1)).all()


def test_shadow_keeps_nan_and_inf(isa: str) -> None:
    screen = Screen(torch.tensor([[math.nan, 1.0], [-math.inf, 1.0]]))
    assert screen.W16.isnan().tolist() == [[True, False], [False, False]]
    assert screen.W16.isinf().tolist() == [[False, False], [True, False]]
    assert not (screen.norms < math.inf).any()


def test_a_screen_of_other_weights_is_refused() -> None:
    x, W, b = torch.randn(2, 8), torch.randn(50, 8), torch.randn(50)
    with pytest.raises(ValueError, match=r"topk_encode: screen must be of W_enc \[50, 8\], got \[49, 8\]"):
        ops.topk_encode(x, W, b, 5, screen=Screen(W[1:]))
    with pytest.raises(ValueError, match="Screen: W_enc must be a float32 matrix"):
        Screen(W.double())


def test_a_screen_of_earlier_weights_is_refused() -> None:
    x, W, b = torch.randn(2, 8), torch.randn(50, 8), torch.randn(50)
    screen = Screen(W)
    W[3] += 1
    for encode, limit in ((ops.topk_encode, 5), (ops.batch_topk_encode, 5), (ops.threshold_encode, 0.5)):
        with pytest.raises(ValueError, match=r"encode: W_enc has changed since the screen was made; call screen.refr"):
            encode(x, W, b, limit, screen=screen)
    screen.refresh(W)
    assert torch.equal(ops.topk_encode(x, W, b, 5, screen=screen)[1], ops.topk_encode(x, W, b, 5)[1])


def test_blocks_out_of_shape_are_refused() -> None:
    candidates = screened._no_candidates(3, 200, 64)
    y, b, norms, x_norms = torch.zeros(3, 40), torch.zeros(40), torch.zeros(40), torch.zeros(3)
    for wrong in (
        {"y": y[:2]},
        {"bias": b[1:]},
        {"norms": norms.double()},
        {"x_norms": x_norms[1:]},
        {"candidates": candidates._replace(ids=candidates.ids[:, :50])},
    ):
        arguments = {"y": y, "bias": b, "norms": norms, "x_norms": x_norms, "candidates": candidates} | wrong
        with pytest.raises(ValueError, match="screen_block"):
            kernels.screen_block(
                first=0, rests=None, x_rests=None, gamma=0.0, rho=0.0, k=3, thresholds=None, **arguments
            )


@pytest.mark.skipif(not makes_tiles(), reason="this CPU has no tiles")
def test_tiles_out_of_shape_are_refused() -> None:
    candidates = screened._no_candidates(40, 200, 64)
    x, W = torch.zeros(40, 50, dtype=torch.bfloat16), torch.zeros(70, 50, dtype=torch.bfloat16)
    panels, of_W, of_x = screened._packed(x), torch.zeros(70), torch.zeros(40)
    right = {"panels": panels, "W": W, "bias": of_W, "norms": of_W, "rests": of_W, "x_norms": of_x, "x_rests": of_x}
    for wrong in (
        {"panels": panels[:1]},
        {"W": W[:, :30]},
        {"W": W[:, :48].float()},
        {"bias": of_W[1:]},
        {"rests": of_W.double()},
        {"x_norms": of_x[1:]},
        {"thresholds": of_W[1:]},
        {"k": 0},
        {"first": 2**31 - 20},
        {"candidates": candidates._replace(ids=candidates.ids[:, :50])},
    ):
        arguments = {"first": 0, "k": 3, "thresholds": None, "candidates": candidates} | right | wrong
        with pytest.raises(ValueError, match="screen_product"):
            kernels.screen_product(gamma=0.0, rho=0.0, **arguments)
    with pytest.raises(ValueError, match="pack_tiles: panels must be"):
        kernels.pack_tiles(x[:20], panels)
