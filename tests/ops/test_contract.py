"""The contraction: bfloat16 read in place, several target layers, a given output, and fixed slots."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from pullback import ops
from pullback.ops import cpu, functional, reference
from tests.ops.cases import FLOATS, assert_sums, pattern, shapes

BF16 = torch.bfloat16
dtypes = st.sampled_from([*FLOATS, BF16])


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_layers(G: torch.Tensor, args: tuple, W: torch.Tensor) -> torch.Tensor:
    """The float64 sum over layers."""
    indptr, indices, values = args
    layers = range(G.shape[0])
    return sum(
        (reference.contract(G[t].double(), indptr, indices, values.double(), W[:, t].double()) for t in layers),
        torch.zeros(G.shape[1], len(indices), dtype=torch.float64),
    )


@given(shape=shapes, G_dtype=dtypes, W_dtype=dtypes, B=st.integers(0, 19), layers=st.integers(1, 3))
def test_any_mixture_of_dtypes_and_layers(
    isa: str, shape: dict, G_dtype: torch.dtype, W_dtype: torch.dtype, B: int, layers: int
) -> None:
    P, F, d, seed = shape["n"], shape["F"], shape["d"], shape["seed"]
    acts = pattern(P, F, shape["most"], torch.float32, seed)
    G, W = random(seed, layers, B, P, d, dtype=G_dtype), random(seed + 1, F, layers, d, dtype=W_dtype)
    expected = by_layers(G, (acts.indptr, acts.indices, acts.values), W)
    magnitude = by_layers(G.abs(), (acts.indptr, acts.indices, acts.values.abs()), W.abs())
    got = ops.contract(G, acts, W)
    assert got.dtype == (torch.float64 if torch.float64 in (G_dtype, W_dtype) else torch.float32)
    assert_sums(got, expected, magnitude, layers * (d + 1))

    one_by_one = torch.zeros(B, acts.nnz, dtype=got.dtype)
    for t in range(layers):
        assert ops.contract(G[t], acts, W[:, t], out=one_by_one) is one_by_one
    assert torch.equal(one_by_one, got)


@pytest.mark.parametrize("d", [*range(1, 71), 767, 768, 769, 1535, 1536, 1540])
def test_every_width_and_height(isa: str, d: int) -> None:
    """Tails of columns, targets and entries, for widened panels too."""
    acts = pattern(1, 40, 1, torch.float32, seed=d)
    acts = ops.SparseActivations.from_dense(random(d, 1, 40) * (torch.arange(40) < d % 11))
    for B in (1, 7):
        for dtype in (torch.float32, BF16):
            G, W = random(1, B, 1, d, dtype=dtype), random(2, 40, d, dtype=dtype)
            args = acts.indptr, acts.indices
            expected = reference.contract(G.double(), *args, acts.values.double(), W.double())
            magnitude = reference.contract(G.double().abs(), *args, acts.values.double().abs(), W.double().abs())
            assert_sums(ops.contract(G, acts, W), expected, magnitude, d + 2)


def from_bits(*bits: int) -> torch.Tensor:
    return torch.tensor(bits).to(torch.int16).view(BF16)


@pytest.mark.parametrize("d", [1, 64])
def test_bfloat16_is_read_as_its_bits_say(isa: str, d: int) -> None:
    """Widening is exact: the smallest subnormal, the largest number, both zeros, infinities and NaN, in the vectors of
    a row and in its tail, as a gradient and as a decoder row."""
    one = ops.SparseActivations.from_dense(torch.ones(1, 1))
    finite = from_bits(0x0001, 0x8001, 0x007F, 0x0080, 0x7F7F, 0x3F81, 0x0000, 0x8000)
    endless = from_bits(0x7F80, 0xFF80, 0x7FC0)
    for row, weight in [(finite, torch.eye(d)[:1]), (endless, torch.ones(1, d))]:
        for value in row:
            expected = value.float().reshape(1, 1)
            many = value.expand(1, 1, d)
            torch.testing.assert_close(ops.contract(many, one, weight), expected, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(
                ops.contract(weight[None], one, many[0]), expected, rtol=0, atol=0, equal_nan=True
            )


def test_bfloat16_is_not_copied(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    kernel = cpu._C.contract
    monkeypatch.setattr(cpu._C, "contract", lambda *views: (seen.append(views), kernel(*views))[1])
    acts, G, W = pattern(3, 20, 5, BF16, seed=1), random(0, 4, 3, 24, dtype=BF16), random(1, 20, 24, dtype=BF16)
    assert ops.contract(G, acts, W).dtype == torch.float32
    assert seen[0][0][:2] == (G.data_ptr(), 2)
    assert seen[0][4][:2] == (W.data_ptr(), 2)


def test_output_rows_may_lie_apart(isa: str) -> None:
    acts, G, W = pattern(5, 40, 9, torch.float32, seed=1), random(0, 14, 5, 33), random(1, 40, 33)
    wide = random(2, 14, acts.nnz + 20)
    before, out = wide.clone(), wide[:, 7 : 7 + acts.nnz]
    ops.contract(G, acts, W, out=out)
    torch.testing.assert_close(out, before[:, 7 : 7 + acts.nnz] + ops.contract(G, acts, W), rtol=1e-6, atol=1e-5)
    assert torch.equal(wide[:, :7], before[:, :7])
    assert torch.equal(wide[:, 7 + acts.nnz :], before[:, 7 + acts.nnz :])


def test_a_fresh_output_needs_no_zeros(isa: str) -> None:
    """Not told to add, the kernel overwrites: over all layers and all column blocks of wide rows."""
    acts, G, W = pattern(3, 20, 5, torch.float32, seed=1), random(0, 2, 4, 3, 1600), random(1, 20, 2, 1600)
    out = torch.full((4, acts.nnz), torch.nan)
    cpu._contract(out, G, acts.indptr, acts.indices, acts.values, W, add=False)
    assert torch.equal(out, ops.contract(G, acts, W))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_output_of_another_kind_is_added_to_all_the_same(backend: str) -> None:
    acts, G, W = pattern(5, 40, 9, torch.float32, seed=1), random(0, 2, 5, 8), random(1, 40, 8)
    expected = 1 + ops.contract(G, acts, W)
    with ops.use_backend(backend):
        for out in (torch.ones(2, acts.nnz).double(), torch.ones(acts.nnz, 2).T, torch.ones(2, acts.nnz)):
            assert ops.contract(G, acts, W, out=out) is out
            torch.testing.assert_close(out.float(), expected, rtol=1e-5, atol=1e-5)


@given(
    P=st.integers(0, 5), k=st.integers(1, 9), d=st.integers(0, 40), layers=st.integers(0, 2), seed=st.integers(0, 99)
)
def test_fixed_slots(isa: str, P: int, k: int, d: int, layers: int, seed: int) -> None:
    """Slots in any order, empty ones and repeated ones too, give what a loop gives."""
    indices = torch.randint(30, (P, k), generator=torch.Generator().manual_seed(seed))
    values = random(seed, P, k).relu()
    G, W = random(seed, 1 + layers, 3, P, d), random(seed + 1, 30, 1 + layers, d)
    if layers == 0:
        G, W = G[0], W[:, 0]
    expected = torch.einsum("tbpd,pktd->bpk", G.view(1 + layers, 3, P, d), W.view(30, 1 + layers, d)[indices])
    got = ops.contract_topk(G, values, indices, W)
    torch.testing.assert_close(got, values * expected, rtol=1e-4, atol=1e-4)
    assert bool((got[:, values == 0] == 0).all())


def test_what_does_not_fit_is_named() -> None:
    acts = pattern(3, 10, 4, torch.float32, seed=0)
    G = torch.zeros(2, 5, 3, 4)
    cases = [
        (lambda: ops.contract(G, acts, torch.zeros(10, 4)), r"W_dec must be \[F, t, d\]=\[10, 2, 4\], got \[10, 4\]"),
        (lambda: ops.contract(G, acts, torch.zeros(10, 3, 4)), r"=\[10, 2, 4\], got \[10, 3, 4\]"),
        (lambda: ops.contract(G[:, :, :2], acts, torch.zeros(10, 2, 4)), r"\[t, b, p, d\]=\[\?, \?, 3, \?\]"),
        (lambda: ops.contract(G[:0], acts, torch.zeros(10, 0, 4)), "with a layer t"),
        (lambda: ops.contract(G[0, 0], acts, torch.zeros(10, 4)), r"\[b, p, d\] or \[t, b, p, d\], got \[3, 4\]"),
        (lambda: ops.contract(G[0], acts, torch.zeros(4, 10)), r"got \[4, 10\] \(transposed\?\)"),
        (
            lambda: ops.contract(G[0], acts, torch.zeros(10, 4), out=torch.zeros(5, 1)),
            rf"out must be \[b, nnz\]=\[5, {acts.nnz}\], got \[5, 1\]",
        ),
        (lambda: ops.contract(G[0].int(), acts, torch.zeros(10, 4)), "floating point tensors, got torch.int32"),
        (
            lambda: ops.contract_topk(G[0], torch.zeros(3, 2), torch.zeros(3, 1).int(), torch.zeros(10, 4)),
            r"indices must be \[p, k\]=\[3, 2\], got \[3, 1\]",
        ),
        (
            lambda: ops.contract_topk(G[0], torch.ones(3, 1), torch.full((3, 1), 10), torch.zeros(10, 4)),
            "feature id 10 at entry 0",
        ),
        (
            lambda: ops.contract_topk(G[0], torch.zeros(3), torch.zeros(3), torch.zeros(10, 4)),
            r"values must be \[p, k\]",
        ),
    ]
    for call, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            call()


def test_the_backend_itself_refuses_float16() -> None:
    acts, G, W = pattern(3, 10, 4, torch.float32, seed=0), random(0, 2, 3, 4), random(1, 10, 4)
    with pytest.raises(ValueError, match="float16 is not supported"):
        cpu.contract(G.half(), acts.indptr, acts.indices, acts.values, W)
    torch.testing.assert_close(ops.contract(G.half(), acts, W), ops.contract(G.half().float(), acts, W))


def test_contract_into_checks_out() -> None:
    acts, G, W = pattern(4, 11, 6, torch.float64, seed=5), random(0, 1, 2, 4, 5).double(), random(1, 11, 1, 5).double()
    out = torch.zeros(2, acts.nnz, dtype=torch.float64)
    args = (out, G, acts.indptr, acts.indices, acts.values, W)
    torch.library.opcheck(torch.ops.pullback.contract_into.default, args)


def test_decode_of_half_precision_weights_has_gradients() -> None:
    """What a GPU is given: float32 values, bfloat16 decoder rows; every backend sums and differentiates in float32."""
    acts = pattern(4, 11, 6, torch.float32, seed=5)
    W, values = random(1, 11, 5, dtype=BF16).requires_grad_(), acts.values.clone().requires_grad_()
    with ops.use_backend("reference"):
        out = torch.ops.pullback.decode_csr(acts.indptr, acts.indices, values, W, torch.ones(5))
        dW, dv = torch.autograd.grad(out.square().sum(), (W, values))
    assert out.dtype == torch.float32
    assert dW.dtype == BF16
    V, u = W.detach().double().requires_grad_(), acts.values.double().requires_grad_()
    dense = ops.decode_csr(ops.SparseActivations(acts.indptr, acts.indices, u, 11), V, torch.ones(5)).square().sum()
    expected = torch.autograd.grad(dense, (V, u))
    torch.testing.assert_close(dW.double(), expected[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(dv.double(), expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("half", [BF16, torch.float16])
def test_a_gpu_is_given_16_bit_decoder_rows_as_they_are(half: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """No float32 copy of W_dec on a GPU, whose kernels widen as they read; values and bias still sum in float32."""
    passed = []
    monkeypatch.setattr(functional, "_ops", SimpleNamespace(decode_csr=lambda *tensors: passed.append(tensors)))
    with FakeTensorMode():
        acts = ops.SparseActivations(
            torch.empty(5, dtype=torch.int64, device="cuda"),
            torch.empty(9, dtype=torch.int32, device="cuda"),
            torch.empty(9, dtype=half, device="cuda"),
            11,
        )
        W, b = torch.empty(11, 6, dtype=half, device="cuda"), torch.empty(6, dtype=half, device="cuda")
        ops.decode_csr(acts, W, b)
        ops.decode_csr(acts, W)
        ops.decode_csr(acts.to(dtype=torch.float64), W, b)
    assert passed[0][3] is W
    assert passed[1][3] is W
    assert [t.dtype for t in passed[0][2:]] == [torch.float32, half, torch.float32]
    assert [t.dtype for t in passed[2][2:]] == [torch.float64] * 3
