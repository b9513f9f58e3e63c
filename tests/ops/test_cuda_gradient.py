"""The CUDA training kernels against the float64 reference."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pullback.ops import reference
from pullback.ops.gradient import DictionaryParams, SparseGradient
from pullback.ops.reference.gradient import dense_gradient
from tests.ops.conftest import Cuda


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def to(tensors: tuple[Tensor, ...], *where: Any) -> Any:
    """The same NamedTuple, its floating tensors converted and all of them moved."""
    moved = (t.to(*where) if t.is_floating_point() or not isinstance(where[0], torch.dtype) else t for t in tensors)
    return type(tensors)(*moved)


# ---- residual ----


def residual_case(
    n: int, k: int, F: int, d: int, dtype: torch.dtype, *, bias: bool = True, pad: int = 0, seed: int = 0
) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(F, generator=g)[:k].sort().values for _ in range(n)]) if n else torch.empty(0, k)
    W = random(seed + 1, F, d + pad, dtype=dtype)[:, :d]
    return random(seed + 2, n, k), ids.int(), W, random(seed + 3, d) if bias else None, random(seed + 4, n, d)


def assert_residual(cuda: Cuda, case: tuple[Any, ...], relu: bool) -> None:
    values, indices, W, b, y = case
    W_there = W.to(cuda.device)
    if W.stride(0) != W.shape[1]:
        W_there = W._base.to(cuda.device)[:, : W.shape[1]]
    moved = [None if t is None else t.to(cuda.device) for t in (values, indices, W, b, y)]
    moved[2] = W_there
    got = cuda.ops.decode_residual(*moved, relu)
    wide = [t if t is None or not t.is_floating_point() else t.double() for t in case]
    expected = reference.decode_residual(*wide, relu)
    magnitude = reference.decode_residual(*(None if t is None else t.abs() for t in wide), False)
    k, d = values.shape[1], W.shape[1]
    eps = torch.finfo(torch.float32).eps
    size = magnitude[0] + 2 * y.double().abs()
    limits = [(k + 3) * eps * size]
    limits.append((k + d + 3) * eps * torch.einsum("nd,nkd->nk", size, W.double().abs()[indices.long()]))
    limits.append(2 * (k + 3) * eps * size.square().sum(1))
    for name, ours, right, limit in zip(("residual", "dots", "losses"), got, expected, limits, strict=True):
        assert ours.shape == right.shape, name
        assert bool(((ours.cpu().double() - right).abs() <= limit).all()), name
    assert got[2].dtype == torch.float64
    if relu:
        assert bool((got[1].cpu()[values <= 0] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("n", "k", "F", "d"),
    [
        (3, 32, 50, 768),
        (2, 1, 5, 1),
        (2, 129, 300, 33),
        (4, 7, 9, 260),
        (2, 5, 5, 1100),
        (2, 64, 90, 2304),
        (2, 300, 400, 64),
    ],
)
def test_residual(cuda: Cuda, n: int, k: int, F: int, d: int, dtype: torch.dtype) -> None:
    assert_residual(cuda, residual_case(n, k, F, d, dtype), relu=bool(k % 2))
    assert_residual(cuda, residual_case(n, k, F, d, dtype, bias=False, pad=3), relu=not k % 2)


def test_residual_of_nothing(cuda: Cuda) -> None:
    assert_residual(cuda, residual_case(0, 4, 9, 8, torch.float32), True)
    assert_residual(cuda, residual_case(3, 0, 9, 8, torch.float32), True)
    assert_residual(cuda, residual_case(3, 0, 9, 8, torch.float32, bias=False), True)


def test_a_wide_residual_takes_more_shared_memory(cuda: Cuda) -> None:
    assert_residual(cuda, residual_case(1, 2, 3, 20001, torch.float32), False)
    too_wide = [t.to(cuda.device) for t in residual_case(1, 1, 1, 50001, torch.float32)]
    with pytest.raises(ValueError, match="rows wider than 50000 do not fit"):
        cuda.ops.decode_residual(*too_wide, False)


@pytest.mark.parametrize("bad", [-1, 9, 2**31 - 1])
def test_a_damaged_id_shows_as_nan(cuda: Cuda, bad: int) -> None:
    values, indices, W, b, y = residual_case(3, 4, 9, 40, torch.float32)
    indices[1, 2] = bad
    got = cuda.ops.decode_residual(*(t.to(cuda.device) for t in (values, indices, W, b, y)), False)
    for t in got:
        assert bool(t[1].isnan().all())
        assert not bool(t[[0, 2]].isnan().any())


def test_rows_far_apart(cuda: Cuda) -> None:
    values, indices, W, b, y = residual_case(1, 2, 2, 64, torch.bfloat16)
    stride = 2**31 + 64
    far = torch.empty(stride + 64, dtype=torch.bfloat16, device=cuda.device).as_strided((2, 64), (stride, 1))
    far.copy_(W)
    near = cuda.ops.decode_residual(*(t.to(cuda.device) for t in (values, indices, W, b, y)), False)
    got = cuda.ops.decode_residual(
        *(t.to(cuda.device) for t in (values, indices)), far, *(t.to(cuda.device) for t in (b, y)), False
    )
    assert all(map(torch.equal, near, got))


# ---- gradient ----


def gradient_case(
    n: int,
    m: int,
    nnz: int,
    F: int,
    d_in: int,
    d_out: int,
    *,
    heavy: float = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> SparseGradient:
    """Entries of random features; heavy > 1 gives the low ones far more."""
    g = torch.Generator().manual_seed(seed)
    ids = (torch.rand(nnz, generator=g) ** heavy * F).int().clamp(0, F - 1)
    starts, order = reference.feature_order(ids, F)
    return SparseGradient(
        starts=starts,
        order=order,
        rows=torch.randint(0, m, (nnz,), generator=g).int() if nnz else torch.empty(0, dtype=torch.int32),
        dvalues=random(seed + 1, nnz),
        values=random(seed + 2, nnz),
        x=random(seed + 3, n, d_in, dtype=dtype),
        g=random(seed + 4, m, d_out, dtype=dtype),
    )


CASES = {
    "small": dict(n=4, m=4, nnz=40, F=9, d_in=12, d_out=20),
    "odd widths": dict(n=5, m=10, nnz=60, F=7, d_in=33, d_out=1),
    "two losses": dict(n=6, m=18, nnz=300, F=40, d_in=64, d_out=96),
    "many columns": dict(n=3, m=3, nnz=20, F=3, d_in=1100, d_out=2052),
    "one feature has all": dict(n=50, m=50, nnz=1500, F=1, d_in=40, d_out=8),
    "heavy features": dict(n=30, m=60, nnz=3000, F=30, d_in=24, d_out=36, heavy=6),
    "heavy, odd widths": dict(n=30, m=30, nnz=2000, F=5, d_in=13, d_out=7, heavy=3),
    "edges of chunks": dict(n=8, m=8, nnz=512, F=1, d_in=8, d_out=8),
    "no entries": dict(n=3, m=3, nnz=0, F=6, d_in=8, d_out=4),
    "no rows": dict(n=0, m=0, nnz=0, F=4, d_in=8, d_out=4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("remove_parallel", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_norm(cuda: Cuda, name: str, remove_parallel: bool, dtype: torch.dtype) -> None:
    grad = gradient_case(**CASES[name], dtype=dtype)
    W = random(9, len(grad.starts) - 1, grad.g.shape[1], dtype=dtype)
    W[0] = 0
    got = cuda.ops.gradient_norm(to(grad, cuda.device), W.to(cuda.device), remove_parallel)
    expected = reference.gradient_norm(to(grad, torch.float64), W.double(), remove_parallel)
    assert got.shape == ()
    assert got.dtype == torch.float64
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-4, atol=1e-9)
    assert torch.equal(got, cuda.ops.gradient_norm(to(grad, cuda.device), W.to(cuda.device), remove_parallel))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_bound_that_is_enough_stands_for_the_norm(cuda: Cuda, name: str, dtype: torch.dtype) -> None:
    grad = gradient_case(**CASES[name], dtype=dtype)
    W = random(9, len(grad.starts) - 1, grad.g.shape[1], dtype=dtype)
    exact = reference.gradient_norm(to(grad, torch.float64), W.double(), False)
    bound = reference.gradient_bound(to(grad, torch.float64)).square()

    def norm(enough: float) -> Tensor:
        number = torch.tensor(enough, dtype=torch.float64, device=cuda.device)
        return cuda.ops.gradient_norm(to(grad, cuda.device), W.to(cuda.device), False, number).cpu()

    got = norm(1.01 * float(bound))
    torch.testing.assert_close(got, bound, rtol=2e-3, atol=1e-9)
    assert got >= exact
    torch.testing.assert_close(norm(0.99 * float(bound) - 1), exact, rtol=1e-4, atol=1e-9)
    assert torch.equal(cuda.ops.gradient_bound(to(grad, cuda.device)).cpu(), got.sqrt())


def test_a_bound_of_damaged_entries_is_never_enough(cuda: Cuda) -> None:
    grad = gradient_case(**CASES["small"])
    grad.rows[3] = 99
    enough = torch.tensor(torch.inf, dtype=torch.float64, device=cuda.device)
    assert bool(cuda.ops.gradient_norm(to(grad, cuda.device), random(9, 9, 20).to(cuda.device), False, enough).isnan())


def dictionary(F: int, d_in: int, d_out: int, seed: int, dtype: torch.dtype = torch.float32) -> DictionaryParams:
    return DictionaryParams(
        *(random(seed + i, *shape, dtype=dtype) for i, shape in enumerate([(F, d_in), (F,), (F, d_out)]))
    )


def state_for(grad: SparseGradient, dtype: torch.dtype = torch.float32) -> list[DictionaryParams]:
    """Parameters and both moments, as after some steps."""
    sizes = len(grad.starts) - 1, grad.x.shape[1], grad.g.shape[1]
    second = DictionaryParams(*(t.square() for t in dictionary(*sizes, 40)))
    return [dictionary(*sizes, 20, dtype), dictionary(*sizes, 30), second]


SWITCHES = [
    dict(zip(("remove_parallel", "unit_norm", "lazy"), map(bool, (i & 1, i & 2, i & 4)), strict=True)) for i in range(8)
]


def assert_steps(
    cuda: Cuda,
    grad: SparseGradient,
    state: list[DictionaryParams],
    scale: float = 0.5,
    lr: float = 0.1,
    step: int = 3,
    **switches: bool,
) -> list[DictionaryParams]:
    settings = dict(betas=(0.9, 0.99), eps=1e-8, **switches)
    wide = [to(part, torch.float64) for part in state]
    before = [to(copy.deepcopy(part), torch.float64) for part in state]
    reference.adam_(to(grad, torch.float64), *wide, scale, lr, step, **settings)
    ours = [to(part, cuda.device) for part in copy.deepcopy(state)]
    cuda.ops.adam_(to(grad, cuda.device), *ours, scale, lr, step, **settings)
    dense = dense_gradient(to(SparseGradient(*(t.abs() if t.is_floating_point() else t for t in grad)), torch.float64))
    for kind, (got, right, old) in zip(("p", "m", "v"), zip(ours, wide, before, strict=True), strict=True):
        for field in DictionaryParams._fields:
            a, b = getattr(got, field).cpu(), getattr(right, field)
            # Rounding of the gradient's sums, seen through the square or the normalised step.
            size = (1 + getattr(dense, field)) ** (2 if kind == "v" else 1)
            rounded = 2**-7 * (b.abs() + getattr(old, field).abs()) if a.dtype == torch.bfloat16 else 0
            assert bool(((a.double() - b).abs() <= 3e-5 * size + rounded).all()), (kind, field)
    return ours


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "+".join(name for name, on in s.items() if on) or "plain")
@pytest.mark.parametrize("name", CASES)
def test_adam(cuda: Cuda, name: str, switches: dict[str, bool]) -> None:
    grad = gradient_case(**CASES[name])
    state = state_for(grad)
    state[0].W_dec[0] = 0
    assert_steps(cuda, grad, state, **switches)


@pytest.mark.parametrize(
    "dtypes",
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize("name", ["small", "odd widths", "heavy features"])
def test_adam_of_16_bit_numbers(cuda: Cuda, name: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    weights, activations = dtypes
    grad = gradient_case(**CASES[name], dtype=activations)
    assert_steps(cuda, grad, state_for(grad, weights), **SWITCHES[0])
    updated = assert_steps(cuda, grad, state_for(grad, weights), remove_parallel=True, unit_norm=True, lazy=True)
    assert updated[0].W_enc.dtype == weights


@settings(max_examples=15)
@given(
    n=st.integers(1, 9),
    copies=st.integers(1, 3),
    nnz=st.integers(0, 1200),
    F=st.integers(1, 30),
    d_in=st.integers(1, 70),
    d_out=st.integers(1, 70),
    heavy=st.sampled_from([1, 4]),
    switches=st.sampled_from(SWITCHES),
    seed=st.integers(0, 99),
)
def test_adam_of_any_shape(
    cuda: Cuda,
    n: int,
    copies: int,
    nnz: int,
    F: int,
    d_in: int,
    d_out: int,
    heavy: int,
    switches: dict[str, bool],
    seed: int,
) -> None:
    grad = gradient_case(n, n * copies, nnz, F, d_in, d_out, heavy=heavy, seed=seed)
    assert_steps(cuda, grad, state_for(grad), **switches)


def test_follows_torch_adam(cuda: Cuda) -> None:
    params = [torch.nn.Parameter(t.clone()) for t in dictionary(9, 12, 20, 0)]
    ours = [to(DictionaryParams(*(t.detach().clone() for t in params)), cuda.device)]
    ours += [DictionaryParams(*(torch.zeros_like(t) for t in ours[0])) for _ in range(2)]
    theirs = torch.optim.Adam(params, lr=0.05, betas=(0.9, 0.99), eps=1e-8)
    for step in range(1, 6):
        grad = gradient_case(**CASES["small"], seed=step)
        for p, g in zip(params, dense_gradient(grad), strict=True):
            p.grad = g
        theirs.step()
        switches = dict(remove_parallel=False, unit_norm=False, lazy=False)
        cuda.ops.adam_(to(grad, cuda.device), *ours, 1.0, 0.05, step, betas=(0.9, 0.99), eps=1e-8, **switches)
    for p, got in zip(params, ours[0], strict=True):
        torch.testing.assert_close(got.cpu(), p.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_not_finite_changes_nothing(cuda: Cuda, scale: float) -> None:
    grad = gradient_case(**CASES["small"])
    state = [to(part, cuda.device) for part in state_for(grad)]
    before = copy.deepcopy(state)
    device_scale = torch.tensor(scale, dtype=torch.float32, device=cuda.device)
    for given_scale in (scale, device_scale):
        cuda.ops.adam_(
            to(grad, cuda.device),
            *state,
            given_scale,
            0.1,
            1,
            betas=(0.9, 0.99),
            eps=1e-8,
            remove_parallel=True,
            unit_norm=True,
            lazy=False,
        )
    assert all(torch.equal(a, b) for x, y in zip(state, before, strict=True) for a, b in zip(x, y, strict=True))


def test_numbers_on_the_device_give_the_same_bits(cuda: Cuda) -> None:
    grad = to(gradient_case(**CASES["heavy features"]), cuda.device)
    states = [[to(part, cuda.device) for part in state_for(gradient_case(**CASES["heavy features"]))] for _ in range(3)]
    switches = dict(betas=(0.9, 0.99), eps=1e-8, remove_parallel=True, unit_norm=True, lazy=False)
    scale, lr, step = (torch.tensor(x, device=cuda.device) for x in (0.25, 0.5, 7))
    cuda.ops.adam_(grad, *states[0], 0.25, 0.5, 7, **switches)
    cuda.ops.adam_(grad, *states[1], scale, lr, step, **switches)
    cuda.ops.adam_(grad, *states[2], scale.double(), lr, step.int(), **switches)
    for other in states[1:]:
        assert all(torch.equal(a, b) for x, y in zip(states[0], other, strict=True) for a, b in zip(x, y, strict=True))


def test_damage_stays_with_its_feature(cuda: Cuda) -> None:
    grad = gradient_case(**CASES["small"])
    hit = int(grad.order[int(grad.starts[4])])
    grad.rows[hit] = 1000
    state = [to(part, cuda.device) for part in state_for(grad)]
    switches = dict(betas=(0.9, 0.99), eps=1e-8, remove_parallel=False, unit_norm=False, lazy=False)
    cuda.ops.adam_(to(grad, cuda.device), *state, 1.0, 0.1, 1, **switches)
    bad = state[0].W_dec.isnan().any(1)
    assert bad.nonzero().flatten().tolist() == [4]


def test_inputs_far_apart(cuda: Cuda) -> None:
    """Offsets beyond 2^31 elements; untouched pages of the buffers cost nothing."""
    grad = to(gradient_case(n=2, m=2, nnz=600, F=2, d_in=64, d_out=64, dtype=torch.bfloat16), cuda.device)
    stride = 2**31 + 64
    far = [
        torch.empty(stride + 64, dtype=torch.bfloat16, device=cuda.device).as_strided((2, 64), (stride, 1))
        for _ in "xg"
    ]
    for t, near in zip(far, (grad.x, grad.g), strict=True):
        t.copy_(near)
    W = random(0, 2, 64).to(cuda.device)
    norms = [cuda.ops.gradient_norm(g, W, True) for g in (grad, grad._replace(x=far[0], g=far[1]))]
    assert torch.equal(*norms)


def test_bad_arguments_are_named(cuda: Cuda) -> None:
    grad = to(gradient_case(**CASES["small"]), cuda.device)
    W = torch.zeros(9, 19, device=cuda.device)
    with pytest.raises(ValueError, match=r"gradient_norm \(cuda\): W_dec must be \[9, 20\], got \[9, 19\]"):
        cuda.ops.gradient_norm(grad, W, True)
    with pytest.raises(ValueError, match=r"rows of g must be a multiple of the rows of x"):
        cuda.ops.gradient_norm(grad._replace(x=grad.x[:3]), W, False)
    state = [to(part, cuda.device) for part in state_for(grad)]
    settings = dict(betas=(0.9, 0.99), eps=1e-8, remove_parallel=False, unit_norm=False, lazy=False)
    with pytest.raises(ValueError, match=r"adam_ \(cuda\): W_enc must be contiguous"):
        cuda.ops.adam_(
            grad, state[0]._replace(W_enc=torch.zeros(12, 9, device=cuda.device).T), *state[1:], 1.0, 0.1, 1, **settings
        )
    with pytest.raises(ValueError, match=r"scalars must be 0-d"):
        cuda.ops.adam_(grad, *state, torch.ones(1, device=cuda.device), 0.1, 1, **settings)
