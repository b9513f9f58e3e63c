"""The pieces of the Triton encoder in Triton's interpreter, on CPU tensors, and the encoder made of them.

Not collected by name: see `interpreter.py`.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pullback.ops import reference, use_backend
from pullback.ops import triton as backend
from pullback.ops.gpu import encoder as gpu_encoder
from pullback.ops.gpu import table as gpu_table
from pullback.ops.triton import encoder as triton_encoder
from tests.ops.interpreter import needs_ranges

few = settings(max_examples=20, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy remarks on NaN and infinity


def encoder(n: int, d: int, F: int, dtype: torch.dtype, seed: int = 0, pad: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    x, W = (torch.randn(rows, d + pad, generator=g).to(dtype)[:, :d] for rows in (n, F))
    return x, W, torch.randn(F, generator=g)


@needs_ranges
@few
@given(
    n=st.integers(1, 40),
    d=st.sampled_from([1, 8, 15, 16, 33, 64]),
    F=st.sampled_from([1, 63, 64, 65, 200, 256]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    pad=st.sampled_from([0, 3, 8]),
    seed=st.integers(0, 2**16),
)
def test_gemm_and_maxima(n: int, d: int, F: int, dtype: torch.dtype, pad: int, seed: int) -> None:
    """By way of descriptors where strides allow."""
    x, W, b = encoder(n, d, F, dtype, seed, pad)
    h, maxima = x.new_empty(n, F), x.new_empty(n, -(-F // 64))
    backend.encode_gemm(x, W, b, h, maxima)
    exact = x.double() @ W.double().T + b.double()
    size = x.double().abs() @ W.double().abs().T + b.double().abs()
    # The interpreter chops where it stores bfloat16: a whole unit in the last place.
    allowed = (d + 2) * 2.0**-24 * size + torch.finfo(dtype).eps * (exact.abs() + 1e-6)
    assert bool(((h.double() - exact).abs() <= allowed).all())
    padded = torch.nn.functional.pad(h, (0, -F % 64), value=-torch.inf)
    assert torch.equal(maxima, padded.unflatten(1, (-1, 64)).amax(2))


@needs_ranges
@quiet
@pytest.mark.parametrize("pad", [0, 3], ids=["descriptors", "pointers"])
def test_maxima_of_nan_and_infinity(pad: int) -> None:
    x, W, b = encoder(3, 16, 256, torch.float16, pad=pad)
    b[70], b[200], b[201] = torch.nan, torch.inf, -torch.nan
    h, maxima = x.new_empty(3, 256), x.new_empty(3, 4)
    backend.encode_gemm(x, W, b, h, maxima)
    assert maxima.isnan().tolist() == [[False, True, False, True]] * 3
    b[201] = -torch.inf
    backend.encode_gemm(x, W, b, h, maxima)
    assert maxima[:, 3].isinf().all()


@pytest.mark.parametrize("descriptors", [False, True])
def test_bfloat16_never_reaches_a_dot(descriptors: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter would multiply its bit patterns: operands are widened first, which changes no product."""
    from pullback.ops.triton import launch as triton_launch

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        t = torch.ones(2, 8, dtype=dtype)
        widened = torch.float32 if dtype == torch.bfloat16 else dtype
        assert triton_launch.dot_operand(t).dtype == widened
    seen = []

    def launch(*tensors: object, **_: object) -> None:
        seen.extend(getattr(t, "base", t) for t in tensors)

    grid = {"encode_gemm_kernel": launch, "encode_gemm_descriptor_kernel": launch}
    for name, kernel in grid.items():
        monkeypatch.setattr(triton_encoder.kernels, name, {(1,): kernel})
    x, W, b = encoder(3, 16 if descriptors else 15, 64, torch.bfloat16)
    backend.encode_gemm(x, W, b, x.new_empty(3, 64), x.new_empty(3, 1))
    assert [t.dtype for t in seen[:2]] == [torch.float32] * 2


@quiet
@few
@given(
    n=st.integers(1, 5),
    d=st.sampled_from([1, 33, 128, 5000]),
    scale=st.sampled_from([1.0, 2.0**-20, 2.0**40]),
    kind=st.sampled_from(["normal", "zeros", "tiny", "nan"]),
    pad=st.sampled_from([0, 3]),
)
def test_round_rows(n: int, d: int, scale: float, kind: str, pad: int) -> None:
    t = torch.randn(n, d + pad, generator=torch.Generator().manual_seed(d))[:, :d]
    if kind == "nan":
        t[0, d // 2] = torch.nan
    else:
        t[0] *= {"normal": 1, "zeros": 0, "tiny": 1e-30}[kind]
    arguments = t, torch.tensor(scale)
    got, expected = backend.round_rows(*arguments), reference.round_rows(*arguments)
    assert torch.equal(got[0].nan_to_num(nan=7), expected[0].nan_to_num(nan=7))
    for mine, theirs in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-18, equal_nan=True)  # squares underflow
    assert torch.equal(got[1] == 0, (t == 0).all(1))


def candidates_of(h: torch.Tensor, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.topk_select(h, C, False)


@quiet
@few
@given(
    n=st.integers(1, 4),
    F=st.integers(1, 90),
    k=st.integers(1, 20),
    spare=st.integers(0, 20),
    relative=st.sampled_from([0.0, 2.0**-8, 0.2]),
    slack=st.sampled_from([0.0, 1e-3, 0.3]),
    kind=st.sampled_from(["normal", "ties", "nan", "inf", "zeros"]),
    relu=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_settle(
    n: int, F: int, k: int, spare: int, relative: float, slack: float, kind: str, relu: bool, seed: int
) -> None:
    """The same choice, bits and doubts as the reference, whatever the error it is told to expect."""
    k = min(k, F)
    x, W, b = encoder(n, 16, F, torch.float32, seed)
    if kind == "ties":
        W = W[:1].expand(F, -1).contiguous()
        b = b.round()
    elif kind == "zeros":
        x.zero_()
        b.zero_()
    elif kind != "normal":
        b[:: max(1, F // 3)] = torch.nan if kind == "nan" else torch.inf
    exact = (x.double() @ W.double().T + b.double()).float()
    # As wrong as the stored values are allowed to be, up or down.
    noise = 0.9 * torch.randint(0, 2, exact.shape, generator=torch.Generator().manual_seed(seed)).mul(2).sub(1)
    found = candidates_of(exact + noise * (relative * exact.abs() + slack), min(F, k + spare))
    arguments = (*found, torch.full((n,), slack), relative, x, W, b, k, relu)
    got, expected = backend.topk_settle(*arguments), reference.topk_settle(*arguments)
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(got[2], expected[2])


@quiet
@few
@given(
    n=st.integers(1, 4),
    F=st.integers(1, 300),
    k=st.integers(1, 70),
    kind=st.sampled_from(["normal", "ties", "nan", "inf", "underflow"]),
    relu=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_exhaust(n: int, F: int, k: int, kind: str, relu: bool, seed: int) -> None:
    k = min(k, F)
    x, W, b = encoder(n, 15, F, torch.float32, seed)
    if kind == "ties":
        W, b = W[:1].expand(F, -1).contiguous(), b.round()
    elif kind == "underflow":  # to zeros of both signs, which are one number
        x, W, b = 1e-30 * x, 1e-30 * W, torch.zeros_like(b)
    elif kind != "normal":
        b[:: max(1, F // 3)] = torch.nan if kind == "nan" else torch.inf
    uncertain = (torch.arange(n) % 2 == 0).to(torch.int8)
    values, indices = torch.full((n, k), 7.0), torch.full((n, k), -7, dtype=torch.int32)
    backend.topk_exhaust_(values, indices, uncertain, x, W, b, relu)
    expected = reference.topk_encode(x, W, b, k, relu)
    assert torch.equal(indices[::2], expected[1][::2])
    torch.testing.assert_close(values[::2], expected[0][::2], rtol=0, atol=0, equal_nan=True)
    assert bool((values[1::2] == 7).all())
    assert bool((indices[1::2] == -7).all())


@needs_ranges
@pytest.mark.parametrize("way", ["chunks", "tiles"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "d", "F", "k"), [(9, 33, 1500, 1), (5, 16, 700, 8), (3, 1, 40, 40)])
def test_encoder(way: str, dtype: torch.dtype, n: int, d: int, F: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_table, "DEFAULT", gpu_table.Plan(way, rows=4, features=300))
    monkeypatch.setattr(gpu_encoder, "SPARE", 9)
    x, W, b = encoder(n, d, F, dtype)
    x[-1] = 0
    with use_backend("triton"):
        values, indices = gpu_encoder.topk_encode(x, W, b, k, True)
    expected = reference.topk_encode(x, W, b, k, True)
    assert torch.equal(indices, expected[1])
    assert torch.equal(values, expected[0])
