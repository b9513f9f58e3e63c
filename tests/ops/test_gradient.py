"""The ops of the training step: against float64 references, against torch's Adam, and on what they must refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pullback.ops import (
    DictionaryParams,
    SparseGradient,
    adam_,
    column_moments,
    decode_residual,
    feature_order,
    gradient_bound,
    gradient_norm,
    reference,
    use_backend,
)
from pullback.ops.gpu import adam as gpu_adam
from pullback.ops.reference.gradient import dense_gradient
from pullback.ops.screen import Screen
from tests.ops.cases import FLOATS, assert_sums
from tests.ops.gradient_cases import copied, dictionary, gradient, in_double, shapes

BETAS = (0.9, 0.99)
# A case takes longer under three instruction sets than hypothesis likes to wait.
relaxed = settings(deadline=None, max_examples=40)


def close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 2e-4 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(got.double(), expected.double(), rtol=tolerance, atol=tolerance)


# ---- decode_residual -------------------------------------------------------------------------------------------------


@relaxed
@given(
    st.integers(0, 5),
    st.integers(1, 9),
    st.sampled_from([1, 2, 5, 64]),
    st.sampled_from([1, 3, 16, 65, 130]),
    st.sampled_from(FLOATS),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_residual_dots_and_losses(isa, n, k, F, d, dtype, relu, bias, seed):
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(n, k, generator=random).to(dtype)
    values[values.abs() < 0.3] = 0  # empty slots
    indices = torch.randint(0, F, (n, k), generator=random)
    # Not contiguous: a target with gaps, weights with wide rows.
    W, y = (torch.randn(rows, d + 3, generator=random).to(dtype)[:, :d] for rows in (F, n))
    b = torch.randn(d, generator=random).to(dtype) if bias else None
    residual, dots, losses = decode_residual(values, indices, W, b, y, relu)
    doubles = values.double(), indices, W.double(), None if b is None else b.double(), y.double(), relu
    expected, expected_dots, expected_losses = reference.decode_residual(*doubles)
    sizes = values.double().abs(), indices, W.double().abs(), None if b is None else b.double().abs(), -y.double().abs()
    magnitude, dot_size, _ = reference.decode_residual(*sizes, False)
    assert residual.dtype == dots.dtype == dtype
    assert losses.dtype == torch.float64
    assert_sums(residual, expected, magnitude, k + 2)
    assert_sums(dots, expected_dots, dot_size, k + 2 + d)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=1e-6)
    if relu:
        assert bool((dots[values <= 0] == 0).all())


def test_nan_and_infinity_surface_in_the_residual(isa):
    W = torch.randn(4, 5)
    values, indices = torch.tensor([[1.0, math.nan], [math.inf, 1.0], [1.0, 1.0]]), torch.tensor([[0, 1]] * 3)
    residual, dots, losses = decode_residual(values, indices, W, None, torch.zeros(3, 5))
    assert residual.isfinite().all(1).tolist() == [False, False, True]
    assert dots.isfinite().all(1).tolist() == [False, False, True]
    assert losses.isfinite().tolist() == [False, False, True]


# ---- feature_order, column_moments -----------------------------------------------------------------------------------


@relaxed
@given(st.integers(0, 300), st.sampled_from([1, 2, 7, 1000]), st.sampled_from([torch.int32, torch.int64]))
def test_the_order_is_stable_and_complete(nnz, F, dtype):
    ids = torch.randint(0, F, (nnz,), generator=torch.Generator().manual_seed(nnz)).to(dtype)
    starts, order = feature_order(ids, F)
    assert starts.dtype == torch.int64
    assert order.dtype == torch.int32
    assert torch.equal(order.long(), ids.argsort(stable=True))
    assert torch.equal(starts.diff(), torch.bincount(ids, minlength=F))
    with use_backend("reference"):
        for got, expected in zip((starts, order), feature_order(ids, F), strict=True):
            assert torch.equal(got, expected)


@relaxed
@given(st.integers(0, 200), st.sampled_from([1, 15, 16, 17, 130]), st.sampled_from(FLOATS), st.integers(0, 99))
def test_column_moments(isa, n, d, dtype, seed):
    random = torch.Generator().manual_seed(seed)
    y = (torch.randn(n, d + 1, generator=random, dtype=torch.float64) + 3).to(dtype)[:, 1:]
    center = torch.randn(d, generator=random, dtype=torch.float64) + 3
    for got, expected in zip(column_moments(y, center), reference.column_moments(y, center), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


# ---- gradient_norm ---------------------------------------------------------------------------------------------------


@relaxed
@given(shapes, st.sampled_from(FLOATS), st.booleans())
def test_the_norm_is_that_of_the_dense_gradient(isa, shape, dtype, remove_parallel):
    grad = gradient(**shape, dtype=dtype)
    W_dec = dictionary(grad, seed=1).W_dec
    got = gradient_norm(grad, W_dec, remove_parallel)
    assert got.dtype == torch.float64
    expected = reference.gradient_norm(in_double(grad), W_dec.double(), remove_parallel)
    close(got, expected, dtype)


@relaxed
@given(shapes, st.sampled_from(FLOATS))
def test_the_bound_is_its_reference_and_not_below_the_norm(isa, shape, dtype):
    grad = gradient(**shape, dtype=dtype)
    bound = gradient_bound(grad)
    close(bound, reference.gradient_bound(grad), torch.float64)
    assert bound >= gradient_norm(grad, dictionary(grad, seed=1).W_dec).sqrt()


def test_the_bound_holds_where_every_addition_rounds_up(isa):
    """One, and then many of just over half a unit in its last place: summed one by one, they count double."""
    n = 200_000
    dvalues = torch.full((n,), 2.0**-24 * (1 + 2.0**-10))
    dvalues[0] = 1
    ids, rows = torch.zeros(n, dtype=torch.int32), torch.arange(n, dtype=torch.int32)
    grad = SparseGradient(*feature_order(ids, 1), rows, dvalues, dvalues, torch.ones(n, 1), torch.ones(n, 1))
    norm = gradient_norm(grad, torch.zeros(1, 1)).sqrt()
    assert norm > 1.005 * reference.gradient_norm(in_double(grad), torch.zeros(1, 1).double(), False).sqrt()
    assert gradient_bound(grad) >= norm


def test_the_dense_gradient_is_that_of_autograd():
    """Of the plain squared loss of a top-k dictionary, with an auxiliary loss on the same inputs."""
    n, F, d_in, d_out, k = 6, 9, 4, 5, 3
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, d, generator=random, dtype=torch.float64) for d in (d_in, d_out))
    weights = [torch.randn(*s, generator=random, dtype=torch.float64) for s in [(F, d_in), (F,), (F, d_out)]]
    W_enc, b_enc, W_dec = (w.requires_grad_() for w in weights)
    groups = torch.arange(k).repeat(n, 1), torch.arange(k, 2 * k).repeat(n, 1)
    entries, losses = [], []
    for i, ids in enumerate(groups):
        h = torch.einsum("nd,nkd->nk", x, W_enc[ids]) + b_enc[ids]
        losses.append((torch.einsum("nk,nkd->nd", h, W_dec[ids]) - y).square().sum())
        residual, dots, _ = decode_residual(h, ids, W_dec, None, y, relu=False)
        rows = torch.arange(i * n, (i + 1) * n, dtype=torch.int32).repeat_interleave(k)
        entries.append((ids.flatten(), rows, 2 * dots.flatten(), h.detach().flatten(), 2 * residual))
    torch.stack(losses).sum().backward()
    ids, rows, dvalues, values, g = (torch.cat(parts) for parts in zip(*entries, strict=True))
    grad = SparseGradient(*feature_order(ids, F), rows, dvalues, values, x, g)
    for got, weight in zip(dense_gradient(grad), weights, strict=True):
        torch.testing.assert_close(got, weight.grad, rtol=1e-12, atol=1e-12)


# ---- adam_ -----------------------------------------------------------------------------------------------------------


@relaxed
@given(shapes, st.sampled_from(FLOATS), st.booleans(), st.booleans(), st.booleans(), st.integers(1, 1000))
def test_adam_is_its_reference(isa, shape, dtype, remove_parallel, unit_norm, lazy, step):
    grad = gradient(**shape, dtype=dtype)
    weights, mean, square = dictionary(grad, 1), dictionary(grad, 2), dictionary(grad, 3, positive=True)
    doubles = [copied(t, torch.float64) for t in (weights, mean, square)]
    how: dict[str, Any] = {"betas": BETAS, "eps": 1e-6, "remove_parallel": remove_parallel}
    how |= {"unit_norm": unit_norm, "lazy": lazy}
    adam_(grad, weights, mean, square, 0.7, 1e-2, step, **how)
    reference.adam_(in_double(grad), *doubles, 0.7, 1e-2, step, **how)
    for got, expected in zip((weights, mean, square), doubles, strict=True):
        for name, a, b in zip(DictionaryParams._fields, got, expected, strict=True):
            assert a.dtype == dtype
            try:
                close(a, b, dtype)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_adam_takes_the_steps_of_torch(isa, dtype):
    """Over several steps, with features that fire in some of them only: they move on by momentum."""
    grads = [gradient(5, 1, 40, 30, 67, 33, seed, dtype) for seed in range(8)]
    weights = dictionary(grads[0], 1)
    parameters = [torch.nn.Parameter(t.clone()) for t in weights]
    optimizer = torch.optim.Adam(parameters, lr=1e-2, betas=BETAS)
    mean, square = (DictionaryParams(*(torch.zeros_like(t) for t in weights)) for _ in range(2))
    for t, grad in enumerate(grads, start=1):
        adam_(grad, weights, mean, square, 0.5, 1e-2, t, betas=BETAS)
        for p, g in zip(parameters, dense_gradient(grad), strict=True):
            p.grad = 0.5 * g
        optimizer.step()
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    for p, got, m, v in zip(parameters, weights, mean, square, strict=True):
        state = optimizer.state[p]
        for a, b in ((got, p.detach()), (m, state["exp_avg"]), (v, state["exp_avg_sq"])):
            torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=tolerance)


def test_lazy_leaves_features_without_entries(isa):
    grad = gradient(4, 1, 12, 50, 20, 20, 0, torch.float32)
    groups = [dictionary(grad, 1), dictionary(grad, 2), dictionary(grad, 3, positive=True)]
    before = [copied(group) for group in groups]
    adam_(grad, *groups, 1.0, 1e-2, 3, lazy=True)
    fired = grad.starts.diff() > 0
    assert 0 < int(fired.sum()) < 50
    for new, old in zip(groups, before, strict=True):
        for a, b in zip(new, old, strict=True):
            assert torch.equal(a[~fired], b[~fired])
            assert bool((a[fired] != b[fired]).reshape(int(fired.sum()), -1).any(1).all())


def test_decoder_rows_keep_unit_norm(isa):
    grad = gradient(4, 1, 90, 20, 20, 70, 0, torch.float32)
    groups = [dictionary(grad, 1), dictionary(grad, 2), dictionary(grad, 3, positive=True)]
    groups[1].W_dec.zero_()  # then a zero row that gets no gradient stays zero
    dead = (grad.starts.diff() == 0) & (groups[0].W_dec == 0).all(1)
    adam_(grad, *groups, 1.0, 1e-2, 1, unit_norm=True, remove_parallel=True)
    norms = groups[0].W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.where(dead, 0.0, 1.0), rtol=1e-6, atol=0)


def test_rows_of_any_scale_are_brought_to_unit_norm(isa):
    """Of a subnormal norm not even the inverse is a float32."""
    grad = gradient(4, 1, 0, 5, 3, 67, 0, torch.float32)
    groups = [dictionary(grad, 1), *(DictionaryParams(*map(torch.zeros_like, dictionary(grad, 1))) for _ in range(2))]
    groups[0].W_dec[:] = torch.tensor([1.0, -1.0]).repeat(34)[:67] * torch.tensor(
        [[1e-43], [1e-39], [1e-20], [1e15], [0]]
    )
    adam_(grad, *groups, 1.0, 1e-2, 1, unit_norm=True)
    torch.testing.assert_close(groups[0].W_dec.norm(dim=1), torch.tensor([1.0, 1, 1, 1, 0]))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_not_finite_changes_nothing(isa, scale):
    grad = gradient(4, 2, 40, 20, 20, 30, 0, torch.float32)
    for backend in ("auto", "reference"):
        groups = [dictionary(grad, 1), dictionary(grad, 2), dictionary(grad, 3, positive=True)]
        before = [copied(group) for group in groups]
        screen = Screen(groups[0].W_enc)
        shadow = screen.W16.clone()
        with use_backend(backend):
            adam_(grad, *groups, torch.tensor(scale), 1e-2, 1, unit_norm=True, screen=screen)
        for new, old in zip(groups, before, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(new, old, strict=True))
        assert torch.equal(screen.W16, shadow)


def test_the_screen_follows_the_encoder(isa):
    grad = gradient(4, 1, 40, 20, 130, 3, 0, torch.float32)
    groups = [dictionary(grad, 1), dictionary(grad, 2), dictionary(grad, 3, positive=True)]
    screen = Screen(groups[0].W_enc)
    adam_(grad, *groups, 1.0, 0.1, 1, screen=screen)
    fresh = Screen(groups[0].W_enc)
    assert torch.equal(screen.W16, fresh.W16)
    assert torch.equal(screen.norms, fresh.norms)
    assert torch.equal(screen.rests, fresh.rests)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_empty_batch_is_a_step_by_momentum(backend):
    none = torch.empty(0)
    with use_backend(backend):
        order = feature_order(none.int(), 5)
        grad = SparseGradient(*order, none.int(), none, none, torch.empty(0, 3), torch.empty(0, 4))
        groups = [dictionary(grad, 1), dictionary(grad, 2), dictionary(grad, 3, positive=True)]
        before = copied(groups[0])
        assert gradient_norm(grad, groups[0].W_dec) == gradient_bound(grad) == 0
        adam_(grad, *groups, 1.0, 1e-2, 1)
    for new, old, mean in zip(groups[0], before, groups[1], strict=True):
        assert torch.equal(new != old, mean != 0)


def test_numbers_may_be_tensors():
    grad = gradient(4, 1, 40, 20, 30, 3, 0, torch.float32)
    results = []
    for wrap in (lambda v: v, torch.tensor):
        groups = [dictionary(grad, 1), dictionary(grad, 2), dictionary(grad, 3, positive=True)]
        adam_(grad, *groups, wrap(0.5), wrap(0.25), wrap(7))
        results.append(groups[0].W_enc)
    assert torch.equal(*results)


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_bits_do_not_depend_on_threads(isa):
    grad = gradient(60, 2, 4000, 300, 70, 130, 0, torch.float32)
    W_dec = dictionary(grad, 1).W_dec
    values, indices = torch.randn(60, 30), torch.randint(0, 300, (60, 30))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            groups = [dictionary(grad, 1), dictionary(grad, 2), dictionary(grad, 3, positive=True)]
            adam_(grad, *groups, 1.0, 1e-2, 1)
            found = [
                *groups[0],
                *groups[1],
                gradient_norm(grad, W_dec),
                gradient_bound(grad),
                *column_moments(grad.g, grad.g[0]),
            ]
            results.append(found + list(decode_residual(values, indices, W_dec, None, grad.g[:60])))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- refusals --------------------------------------------------------------------------------------------------------

GRAD = gradient(3, 2, 8, 5, 4, 6, 0, torch.float32)


def norm_of(**changed):
    return lambda: gradient_norm(GRAD._replace(**changed), torch.zeros(5, 6))


def adam_of(weights: dict[str, Tensor], **how):
    def run():
        groups = [dictionary(GRAD, 1), dictionary(GRAD, 2), dictionary(GRAD, 3)]
        adam_(GRAD, groups[0]._replace(**weights), groups[1], groups[2], 1.0, 1e-2, 1, **how)

    return run


REFUSED = {
    "values without k": (
        lambda: decode_residual(*(torch.zeros(3),) * 2, torch.zeros(5, 4), None, torch.zeros(3, 4)),
        "values must be",
    ),
    "a short target": (
        lambda: decode_residual(torch.zeros(3, 2), torch.zeros(3, 2).int(), torch.zeros(5, 4), None, torch.zeros(2, 4)),
        r"y must be \[n, d\]=\[3, 4\], got \[2, 4\]",
    ),
    "an id too large": (
        lambda: decode_residual(torch.zeros(1, 2), torch.tensor([[1, 5]]), torch.zeros(5, 4), None, torch.zeros(1, 4)),
        "feature id 5 at entry 1 is not in 0..F-1=4",
    ),
    "an id below zero": (lambda: feature_order(torch.tensor([0, -1]), 3), "feature id -1 at entry 1"),
    "no features": (lambda: feature_order(torch.tensor([0]), 0), "n_features must be in 1"),
    "a narrow center": (
        lambda: column_moments(torch.zeros(2, 3), torch.zeros(2)),
        r"center must be \[d\]=\[3\], got \[2\]",
    ),
    "few rows": (norm_of(rows=GRAD.rows[:7]), r"rows must be \[nnz\]=\[8\], got \[7\]"),
    "rows outside g": (norm_of(rows=GRAD.rows + 6), r"rows must lie in 0\.\.5"),
    "order outside": (norm_of(order=GRAD.order + 1), r"order must lie in 0\.\.7"),
    "starts that fall": (norm_of(starts=GRAD.starts.flip(0)), "starts must grow from 0 to nnz=8"),
    "g beside x": (norm_of(g=GRAD.g[:4]), r"g must be \[m, d_out\] with m a multiple of n=3, got \[4, 6\]"),
    "64-bit rows": (norm_of(rows=GRAD.rows.long()), "rows must be torch.int32, got torch.int64"),
    "mixed dtypes": (norm_of(values=GRAD.values.double()), "values must be torch.float32 like x, got torch.float64"),
    "another width": (lambda: gradient_norm(GRAD, torch.zeros(5, 4)), r"W_dec must be \[F, d\]=\[5, 6\], got \[5, 4\]"),
    "other features": (adam_of({"b_enc": torch.zeros(6)}), r"b_enc must be \[F\]=\[5\], got \[6\]"),
    "half weights": (adam_of({"W_enc": torch.zeros(5, 4).half()}), "W_enc must be torch.float32 like x"),
    "gaps": (adam_of({"W_enc": torch.zeros(5, 8)[:, :4]}), "W_enc must be contiguous"),
    "another screen": (adam_of({}, screen=Screen(torch.zeros(5, 3))), r"screen must shadow \[5, 4\], got \[5, 3\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_sentence(case):
    call, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [0.5, torch.nan, torch.inf])
def test_the_fused_adam_of_a_gpu_takes_the_step_of_the_reference(dtype, scale):
    """torch's fused Adam also runs on a CPU."""
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 7, generator=random, dtype=dtype) for _ in range(3)]
    weights.append(torch.rand(3, 7, generator=random, dtype=dtype))
    results = []
    for run in (gpu_adam.dense_adam_, reference.dense_adam_):
        moved = [t.clone() for t in weights]
        number = torch.tensor(scale, dtype=torch.float64)
        run(*moved, number, 1e-2, 5, betas=(0.9, 0.99), eps=1e-8)
        results.append(moved)
    for mine, expected, before in zip(*results, weights, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=1e-7)
        assert math.isfinite(scale) or torch.equal(mine, before)
