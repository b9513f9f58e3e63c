"""Mistakes that sparse kernels are known to make. Each test says which one it guards against."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from pullback import _C, ops
from pullback.ops import SparseActivations, reference
from pullback.ops.cpu import encoders
from pullback.ops.cpu.borrow import view
from pullback.ops.reference import frozen
from pullback.training import TrainStep
from pullback.transcoders import ReLU, Transcoder
from tests.ops.cases import PRODUCTS, multiply_in, pattern

F64 = torch.float64
BF16 = torch.bfloat16


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


# ---- gradients -------------------------------------------------------------------------------------------------------


def layer_gradients(layer: Callable[..., Tensor], y: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((layer(*leaves) - y).square().sum(), leaves)


@pytest.mark.parametrize("k", [3, 60, 64])
def test_slots_that_the_relu_emptied_have_no_gradient(isa: str, k: int) -> None:
    """A backward pass without the ReLU's mask trains the features in empty slots: k=60 of 64 leaves about 28 empty."""
    n, d, F = 9, 12, 64
    leaves = tuple(
        random(i, *shape, dtype=F64).requires_grad_() for i, shape in enumerate([(n, d), (F, d), (F,), (F, d), (d,)])
    )

    def sparse(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        return ops.decode_topk(*ops.topk_encode(x, W_enc, b_enc, k), W_dec, b_dec)

    def dense(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        h = x @ W_enc.T + b_enc
        chosen = torch.zeros_like(h).scatter(1, h.topk(k).indices, 1.0)
        return (h * chosen).relu() @ W_dec + b_dec

    y = random(9, n, d, dtype=F64)
    expected = layer_gradients(dense, y, leaves)
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend):
            for got, right in zip(layer_gradients(sparse, y, leaves), expected, strict=True):
                torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-10)


def test_gradients_land_in_their_own_rows_and_columns(isa: str) -> None:
    """Rows derived as id // k, id // F, or modulo the wrong width put gradients into row 0, or bias gradients into the
    row's place. With one-hot inputs the gradient of an encoder row says which rows of x chose it."""
    n, F, k = 7, 19, 3
    x, W, b = torch.eye(n), random(1, F, n).requires_grad_(), random(2, F).requires_grad_()
    values, indices = ops.topk_encode(x, W, b, k, relu=False)
    weights = torch.arange(1.0, n * k + 1).view(n, k)
    dW, db = torch.autograd.grad((values * weights).sum(), (W, b))
    expected = torch.zeros(F, n).index_put(
        (indices.long().flatten(), torch.arange(n).repeat_interleave(k)), weights.flatten()
    )
    assert torch.equal(dW, expected)
    assert torch.equal(db, expected.sum(1))


def test_backward_with_empty_rows_and_the_outermost_features(isa: str) -> None:
    """A backward pass over bags that are empty, or end at the last feature, read outside of its arrays."""
    acts = SparseActivations(
        torch.tensor([0, 0, 2, 2, 3, 3]), torch.tensor([0, 10, 10], dtype=torch.int32), torch.ones(3), 11
    )
    values, W = acts.values.requires_grad_(), random(0, 11, 5).requires_grad_()
    ops.decode_csr(SparseActivations(acts.indptr, acts.indices, values, 11), W).sum().backward()
    assert W.grad is not None
    assert W.grad[:, 0].tolist() == [1] + [0] * 9 + [2]
    torch.testing.assert_close(values.grad, W.detach()[[0, 10, 10]].sum(1))


def test_the_auxiliary_loss_moves_the_encoder_of_dead_features() -> None:
    """An auxiliary loss whose gradient stops at the activations revives nothing: only decoder rows would move."""
    x, y = random(0, 64, 6), random(1, 64, 6)
    after = []
    for alpha in (0.0, 0.5):
        step = TrainStep(6, 6, 20, k=2, lr=1e-2, auxk_alpha=alpha, dead_feature_window=1000, max_grad_norm=None)
        step(x, y)
        step.tokens_since_fired[:5] = 1000
        step(x, y)
        after.append(
            {
                name: w.detach().clone().reshape(20, -1)
                for name, w in step.transcoder.named_parameters()
                if name != "b_dec"
            }
        )
    for name in ("W_enc", "b_enc", "W_dec"):
        moved = (after[1][name] - after[0][name]).abs().amax(1)
        assert bool((moved[:5] > 0).all()), name
        assert bool((moved[5:] == 0).all()), name


def test_one_seed_gives_one_training_run() -> None:
    """Gradients summed by atomics make every run another one, from the second step on."""
    runs, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            step = TrainStep(8, 8, 300, k=6, lr=1e-2, dead_feature_window=300)
            for i in range(4):
                step(random(i, 200, 8), random(i + 50, 200, 8))
            runs.append([w.detach().clone() for w in step.transcoder.parameters()])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True)), "two runs of one thread"
    for a, b in zip(runs[0], runs[1], strict=True):  # torch's own sums may depend on threads
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("product", PRODUCTS)
def test_no_matrix_of_all_rows_and_features_is_made_or_kept(product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pre-activations of all features, kept for the backward pass, take more memory than the weights."""
    n, F, k = 1500, 30_000, 4
    multiply_in(product, monkeypatch)
    x, W, b = random(0, n, 8), random(1, F, 8).requires_grad_(), random(2, F).requires_grad_()
    saved: list[int] = []

    def encode() -> int:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            values, ids = ops.topk_encode(x, W, b, k)
            ops.decode_topk(values, ids, W).square().sum().backward()
        return sum(buffer.numel() for buffer in encoders._kept.buffers.values())

    with ThreadPoolExecutor(1) as fresh:  # scratch belongs to a thread
        scratch = fresh.submit(encode).result()
    assert max(saved) < n * F / 100
    assert scratch < n * F / 4
    assert W.grad is not None


# ---- orientation -----------------------------------------------------------------------------------------------------

ACTS = pattern(3, 40, 5, torch.float32, seed=0)
X, ENCODER, DECODER, BIAS = random(0, 3, 8), random(1, 40, 8), random(2, 40, 8), random(3, 40)
IDS, SLOTS = torch.zeros(3, 2, dtype=torch.int32), torch.ones(3, 2)
TURNED: dict[str, Callable[[], object]] = {
    "topk_encode": lambda: ops.topk_encode(X, ENCODER.T, BIAS, 2),
    "decode_csr": lambda: ops.decode_csr(ACTS, DECODER.T),
    "decode_topk with a bias": lambda: ops.decode_topk(SLOTS, IDS, DECODER.T, torch.zeros(8)),
    "sampled_dot": lambda: ops.sampled_dot(X, DECODER.T, ACTS.indptr, ACTS.indices),
    "contract": lambda: ops.contract(X[None], ACTS, DECODER.T),
    "contract, two layers": lambda: ops.contract(X.expand(2, 1, 3, 8), ACTS, DECODER.T[:, None].expand(8, 2, 40)),
    "contract_topk": lambda: ops.contract_topk(X[None], SLOTS, IDS, DECODER.T),
    "top_pullbacks": lambda: ops.top_pullbacks(X, DECODER.T, 2),
    "Transcoder, encoder": lambda: Transcoder(ENCODER.T, BIAS, DECODER, torch.zeros(8), activation=ReLU()),
    "Transcoder, decoder": lambda: Transcoder(ENCODER, BIAS, DECODER.T, torch.zeros(8), activation=ReLU()),
}


@pytest.mark.parametrize("name", TURNED)
def test_a_transposed_matrix_is_refused(name: str) -> None:
    """A decoder given as (d, F) was indexed by feature id, beyond its d rows."""
    with pytest.raises(ValueError, match=r"transposed\?"):
        TURNED[name]()


def test_a_transposed_decoder_without_any_other_width_is_refused_by_its_ids() -> None:
    """Where only the ids can tell, they do: no backend reads past the rows there are."""
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend), pytest.raises(ValueError, match="feature id 8 at entry 1 is not in 0..F-1=7"):
            ops.decode_topk(torch.ones(1, 2), torch.tensor([[7, 8]]), DECODER.T)


# ---- edges of arrays -------------------------------------------------------------------------------------------------

MARGIN = 80  # more than any kernel does at once


class Guarded:
    """Tensors that lie between margins which an op must neither use (NaN, or ids of no feature) nor change."""

    def __init__(self) -> None:
        self.buffers: list[tuple[Tensor, Tensor]] = []

    def __call__(self, t: Tensor, gap: int = 0) -> Tensor:
        """A copy of t inside margins, the rows of a matrix `gap` apart."""
        width = t.shape[-1] + gap
        buffer = torch.full((2 * MARGIN + t.numel() // max(1, t.shape[-1]) * width,), self._poison(t), dtype=t.dtype)
        strides = {1: [1], 2: [width, 1], 3: [t.shape[-2:].numel() // t.shape[-1] * width, width, 1]}[t.ndim]
        view = buffer.as_strided(t.shape, strides, MARGIN)
        view.copy_(t)
        around = torch.ones_like(buffer, dtype=torch.bool)
        around.as_strided(t.shape, strides, MARGIN).fill_(False)
        self.buffers.append((buffer, around))
        return view

    @staticmethod
    def _poison(t: Tensor) -> float | int:
        return torch.nan if t.is_floating_point() else 2**31 - 1

    def check(self) -> None:
        for buffer, around in self.buffers:
            margin = buffer[around]
            assert bool((margin.isnan() if buffer.is_floating_point() else margin == 2**31 - 1).all())


@pytest.mark.parametrize("d", range(1, 71))
def test_tails_of_every_length(isa: str, d: int) -> None:
    """Kernels that work in blocks dropped the rest of a row, or read and wrote past it: n % block for -n % block, d //
    block programs for d columns. Every length around every block, between margins of NaN."""
    guarded = Guarded()
    n, F = 3, d
    acts = pattern(n, F, 7, torch.float32, seed=d)
    indptr, ids, values = guarded(acts.indptr), guarded(acts.indices), guarded(acts.values)
    args, exact = (indptr, ids), (acts.indptr, acts.indices)
    x, W, b = random(1, n, d), random(2, F, d), random(3, d)
    gx, gW, gb = guarded(x, gap=3), guarded(W, gap=5), guarded(b)
    out = guarded(torch.zeros(n, d))

    _C.decode_csr(*map(view, (*args, values, gW, gb, out)))
    torch.testing.assert_close(out, reference.decode_csr(*exact, acts.values, W, b), rtol=1e-4, atol=1e-4)
    dots = guarded(torch.zeros(acts.nnz))
    _C.sampled_dot(*map(view, (gx, gW, *args, dots)))
    torch.testing.assert_close(dots, reference.sampled_dot(x, W, *exact), rtol=1e-4, atol=1e-4)
    sums = guarded(torch.zeros(F, d))
    _C.segment_outer(*map(view, (*args, values, gx, sums)))
    torch.testing.assert_close(sums, reference.segment_outer(*exact, acts.values, x, F), rtol=1e-4, atol=1e-4)
    for k in {1, (d + 1) // 2, d}:
        top, chosen = guarded(torch.zeros(n, k)), guarded(torch.zeros(n, k, dtype=torch.int32))
        _C.topk_select(view(gx), view(top), view(chosen), True)
        assert torch.equal(chosen, reference.topk_select(x, k, True)[1])
    for dtype in (torch.float32, BF16):
        G, V = random(4, 7, n, d, dtype=dtype), W.to(dtype)
        edges = guarded(torch.zeros(7, acts.nnz), gap=2)
        _C.contract(*map(view, (guarded(G, gap=3)[None], *args, values, guarded(V, gap=5)[:, None], edges)), False)
        torch.testing.assert_close(edges, reference.contract(G, *exact, acts.values, V), rtol=1e-4, atol=1e-4)
    guarded.check()


@pytest.mark.parametrize("d", range(1, 71))
def test_tails_of_frozen_attention(isa: str, d: int) -> None:
    """The same for gradients on their way through frozen attention: 2 prompts of 3 positions, 5 targets, 2 heads."""
    guarded = Guarded()
    mixing, scale = random(1, 12, 3).abs(), random(2, 2, 3)
    args = guarded(mixing).view(2, 2, 3, 3), guarded(scale, gap=1)
    pos = guarded(torch.tensor([0, 1, 2, 2, 0, 1, 1, 0, 2, 1])).view(2, 5)
    row, factor = guarded(torch.arange(10) % 7).view(2, 5), guarded(random(8, 2, 5))
    taken, standing = random(3, 7, 2, d), random(4, 7, d)
    out = guarded(torch.zeros(30, d)).view(6, 5, d)
    lent = guarded(taken.flatten(0, 1)).view(7, 2, d), row, factor, *args, pos, guarded(standing), out
    _C.spread_heads(*map(view, lent), False)
    patterns = mixing.view(2, 2, 3, 3).tril()
    known = row, factor, pos, patterns, scale, 3
    expected = frozen.spread_heads(taken, *known, standing)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    _C.spread_heads(*map(view, lent[:6]), None, view(out), True)
    expected += frozen.spread_heads(taken, *known, None)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)

    at_z, before = random(5, 60, d), guarded(torch.zeros(30, d)).view(2, 3, 5, 1, d)
    _C.mix_back(*map(view, (guarded(at_z).view(2, 3, 5, 2, d), *args, before)))
    expected = frozen.mix_back(at_z.view(2, 3, 5, 2, d), patterns, scale, 1, (3, 5))
    torch.testing.assert_close(before, expected, rtol=1e-4, atol=1e-4)

    R, leaf, edges = random(6, 6, 5, d), random(7, 2, 3, d), guarded(torch.zeros(5, 7), gap=2)
    strided = guarded(R, gap=3)
    _C.contract_leaves(view(strided), [view(guarded(leaf, gap=1))], [1], view(edges))
    expected = torch.zeros(5, 7)
    frozen.contract_leaves(R, [leaf], [1], expected)
    torch.testing.assert_close(edges, expected, rtol=1e-4, atol=1e-4)

    written = random(8, 6, 3, d) * torch.ones(3, 3).tril().repeat(2, 1)[..., None]
    through = guarded(torch.zeros(10, 3), gap=2).unflatten(0, (5, 2))
    _C.contract_written(
        view(strided.unflatten(0, (2, 3))), view(guarded(written, gap=1).unflatten(0, (2, 3))), 0, view(through)
    )
    expected = torch.zeros(5, 2, 3)
    frozen.contract_written(R.unflatten(0, (2, 3)), written.unflatten(0, (2, 3)), 0, expected)
    torch.testing.assert_close(through, expected, rtol=1e-4, atol=1e-4)
    guarded.check()


@pytest.mark.parametrize("F", [127, 129, 1000, 1023, 1025, 4095, 4097, 16_385])
def test_tails_of_long_rows(isa: str, F: int) -> None:
    """The same for rows long enough to be selected from by blocks."""
    guarded, h = Guarded(), random(F, 2, F)
    strided = guarded(h, gap=1)
    for k in (1, 5, 31):
        top, chosen = guarded(torch.zeros(2, k)), guarded(torch.zeros(2, k, dtype=torch.int32))
        _C.topk_select(view(strided), view(top), view(chosen), False)
        assert torch.equal(chosen, reference.topk_select(h, k, False)[1])
    guarded.check()


# ---- offsets beyond 2^31 ---------------------------------------------------------------------------------------------

FAR = 2**31 + 7  # elements, so that neither an element nor a byte offset fits an int32


def untouched(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory that is only reserved until it is written to."""
    try:
        return torch.empty(size, dtype=dtype)
    except RuntimeError:
        pytest.skip(f"this machine does not reserve {size} elements of {dtype}")


def apart(t: Tensor) -> Tensor:
    """The two rows of t, FAR elements apart."""
    view = untouched(FAR + t.shape[1], t.dtype).as_strided(t.shape, (FAR, 1))
    return view.copy_(t)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_rows_more_than_two_to_the_31_elements_apart(dtype: torch.dtype) -> None:
    """id * stride in 32 bits wraps: with F * d beyond 2^31 features read each other's rows."""
    acts = SparseActivations.from_dense(torch.tensor([[1.0, 2], [3, 4]]))
    W = random(0, 2, 40, dtype=dtype)
    far, args = apart(W), (acts.indptr, acts.indices)
    G = random(1, 3, 2, 40, dtype=dtype)
    expected = ops.contract(G, acts, W)
    assert torch.equal(ops.contract(G, acts, far), expected)
    assert torch.equal(ops.contract(apart(G[0])[None], acts, W), expected[:1])
    if dtype == torch.float32:
        assert torch.equal(ops.decode_csr(acts, far), ops.decode_csr(acts, W))
        assert torch.equal(ops.sampled_dot(far, W, *args), ops.sampled_dot(W, W, *args))
        assert torch.equal(ops.sampled_dot(W, far, *args), ops.sampled_dot(W, W, *args))
        assert torch.equal(ops.segment_outer(*args, acts.values, far, 2), ops.segment_outer(*args, acts.values, W, 2))
        for got, right in zip(ops.topk_select(far, 3), ops.topk_select(W, 3), strict=True):
            assert torch.equal(got, right)


def test_sums_of_more_than_two_to_the_31_places() -> None:
    """i * F + j in 32 bits wraps from F = 46341 on."""
    F = 70_000
    acts = SparseActivations(torch.tensor([0, 2]), torch.tensor([1, F - 1], dtype=torch.int32), torch.ones(2), F)
    products, i, j = ops.Coactivation(F).add(acts).top(4)
    assert products.tolist() == [1] * 4
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(1, 1), (1, F - 1), (F - 1, 1), (F - 1, F - 1)]


# ---- 16 bits ---------------------------------------------------------------------------------------------------------


def test_bfloat16_by_its_bits(isa: str) -> None:
    """A bfloat16 is the upper half of a float32: read as an integer, or as float16, it is another number. Subnormals
    are kept; the same results, bit for bit, as from `float()`."""
    bits = [0x0001, 0x8001, 0x007F, 0x0080, 0x7F7F, 0x3F81, 0xBF7F, 0x0000, 0x8000, 0x4049, 0x3F80, 0x2000]
    row = torch.tensor(bits).to(torch.int16).view(BF16)
    h = torch.stack([row, row.flip(0)])
    for got, right in zip(ops.topk_select(h, 5, relu=False), ops.topk_select(h.float(), 5, relu=False), strict=True):
        assert torch.equal(got, right)
    acts = SparseActivations.from_dense(torch.eye(2)[:, :1].repeat(1, 2))
    assert torch.equal(ops.decode_csr(acts, h), ops.decode_csr(acts, h.float()))
    assert torch.equal(ops.decode_csr(acts, h)[0], (h[0].float() + h[1].float()))
    values, ids = ops.top_pullbacks(torch.ones(1, 1, dtype=BF16), row[:, None], len(row))
    expected = row.float().sort(descending=True, stable=True)
    assert torch.equal(values[0], expected.values)
    assert torch.equal(ids[0].long(), expected.indices)
