"""Frozen attention's steps down the stream, against their sums written out in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pullback import _C, ops
from pullback.ops.cpu.borrow import view
from pullback.ops.frozen import Placed, add_heads, contract_leaves, contract_written, mix_back, spread_heads
from pullback.ops.reference import frozen as reference
from tests.ops.cases import FLOATS

SEEDS = st.integers(0, 2**31)
DTYPES = st.sampled_from(FLOATS)
SIZES = {"Q": st.integers(1, 3), "n": st.integers(1, 9), "H": st.integers(1, 6), "d": st.sampled_from([1, 3, 16, 37])}
P, T = 5, 7  # positions of a cone, and of the prompt


class Made:
    """Patterns and scales of Q prompts, and whatever else is asked for, in an order of its own in memory."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def randn(self, *shape: int) -> Tensor:
        """Rows are contiguous, what is around them is not."""
        turned = torch.randn(*shape[-2::-1], shape[-1], generator=self.generator, dtype=self.dtype)
        return turned.permute(*range(len(shape) - 2, -1, -1), len(shape) - 1)

    def placed(self, Q: int, n: int, U: int) -> Placed:
        """Rows of a table of U, some of them many times, with factors that may be 0, below position P."""
        row, pos = (torch.randint(0, top, (Q, n), generator=self.generator) for top in (U, P))
        factor = torch.randint(0, 4, (Q, n), generator=self.generator).to(self.dtype) / 2
        return Placed(row, factor, pos)

    def attention(self, Q: int, H: int) -> tuple[Tensor, Tensor]:
        mixing = torch.softmax(self.randn(Q, H, T, T), -1).tril()
        return mixing, torch.rand(Q, T, generator=self.generator, dtype=self.dtype) + 0.5


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-4 if got.dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@given(seed=SEEDS, dtype=DTYPES, stands=st.booleans(), **SIZES)
def test_spread(isa: str, backend: str, seed: int, dtype: torch.dtype, stands: bool, Q: int, n: int, H: int, d: int):
    made = Made(seed, dtype)
    mixing, scale = made.attention(Q, H)
    U = max(1, n // 2)
    taken, standing = made.randn(U, H, d), made.randn(U, d) if stands else None
    at = made.placed(Q, n, U)
    with ops.use_backend(backend):
        got = spread_heads(taken, at, mixing, scale, P, standing)
    expected = torch.zeros(Q, P, n, d, dtype=torch.float64)
    for q in range(Q):
        for b, (row, pos) in enumerate(zip(at.row[q].tolist(), at.pos[q].tolist(), strict=True)):
            factor = at.factor[q, b].double()
            for p in range(P):
                weights = mixing[q, :, pos, p].double() * scale[q, p].double()
                expected[q, p, b] = factor * weights @ taken[row].double()
            if standing is not None:
                expected[q, pos, b] += factor * standing[row].double()
    close(got, expected.flatten(0, 1))
    before = got.clone()
    with ops.use_backend(backend):
        add_heads(got, taken, at, mixing, scale)
        exact = at._replace(factor=at.factor.double())
        close(got - before, spread_heads(taken.double(), exact, mixing.double(), scale.double(), P))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@given(seed=SEEDS, dtype=DTYPES, shared=st.integers(1, 3), **SIZES)
def test_mix_back(isa: str, backend: str, seed: int, dtype: torch.dtype, shared: int, Q: int, n: int, H: int, d: int):
    made = Made(seed, dtype)
    mixing, scale = made.attention(Q, H * shared)
    at_z = made.randn(Q, P, n, H * shared, d)
    with ops.use_backend(backend):
        got = mix_back(at_z, mixing, scale, H)
    by_head = torch.einsum("qhts,qs,qtnhd->qsnhd", *(x.double() for x in (mixing[:, :, :P, :P], scale[:, :P], at_z)))
    close(got, by_head.unflatten(3, (H, shared)).sum(4))


@pytest.mark.parametrize("sources", [1, 2, P - 1, P])
@given(seed=SEEDS, n_kv=st.integers(1, 3), shared=st.integers(1, 2), padded=st.booleans())
def test_patterns_are_triangles(sources: int, seed: int, n_kv: int, shared: int, padded: bool):
    made = Made(seed, torch.float64)
    mixing, scale = made.attention(2, n_kv * shared)
    at_z, sizes = made.randn(2, P, 3, n_kv * shared, 4), (T, 16) if padded else (P, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "SOURCES", sources)
        got = reference.mix_back(at_z, mixing, scale, n_kv, sizes)
    assert got.is_contiguous()
    torch.testing.assert_close(got, reference.mix_back(at_z, mixing, scale, n_kv, (P, 3)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@given(seed=SEEDS, dtype=DTYPES, count=st.integers(1, 6), **{k: v for k, v in SIZES.items() if k != "H"})
def test_leaves(isa: str, backend: str, seed: int, dtype: torch.dtype, count: int, Q: int, n: int, d: int):
    made = Made(seed, dtype)
    R, out = made.randn(Q * P, n, d), made.randn(n, 3 + count * Q * P)
    leaves = [made.randn(Q, T, d)[:, :P] for _ in range(count - 1)] + [made.randn(1, d).expand(Q, P, d)]
    starts = [3 + Q * P * i for i in range(count)]
    expected = out.double()
    for u, start in zip(leaves, starts, strict=True):
        expected[:, start : start + Q * P] += torch.einsum("rbd,rd->br", R.double(), u.reshape(-1, d).double())
    out = out.contiguous()
    with ops.use_backend(backend):
        contract_leaves(R, leaves, starts, out)
    close(out, expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@given(seed=SEEDS, dtype=DTYPES, first=st.integers(0, 3), **{k: v for k, v in SIZES.items() if k != "H"})
def test_written(isa: str, backend: str, seed: int, dtype: torch.dtype, first: int, Q: int, n: int, d: int):
    made = Made(seed, dtype)
    sources = torch.arange(first, P)
    written = made.randn(Q, P, len(sources), d) * (sources <= torch.arange(P)[:, None])[..., None]
    R, out = made.randn(Q, P, n, d), made.randn(n, Q, len(sources))
    expected = out.double() + torch.einsum("qpbd,qpsd->bqs", R.double(), written.double())
    with ops.use_backend(backend):
        contract_written(R, written, first, out)
    close(out, expected)


def test_a_target_does_not_depend_on_those_beside_it(isa: str):
    # To the bit, where vectors divide the width: what is left over, a compiler may sum in another order.
    made = Made(0, torch.float32)
    mixing, scale = made.attention(2, 3)
    taken, at = made.randn(9, 3, 64), made.placed(2, 9, 9)
    at_z, written = made.randn(2, P, 9, 3, 64), made.randn(2, P, P, 64)
    R, leaf = made.randn(2 * P, 9, 64), made.randn(2, P, 64)

    def all_of(which: slice) -> list[Tensor]:
        n = len(range(9)[which])
        edges, through = torch.zeros(n, 2 * P), torch.zeros(n, 2, P)
        contract_leaves(R[:, which], [leaf], [0], edges)
        contract_written(R[:, which].unflatten(0, (2, P)), written, 0, through)
        spread = spread_heads(taken, Placed(*(t[:, which] for t in at)), mixing, scale, P)
        return [
            edges,
            through,
            spread.transpose(0, 1),
            mix_back(at_z[:, :, which], mixing, scale, 3).permute(2, 0, 1, 3, 4),
        ]

    for together, alone in zip(all_of(slice(None)), all_of(slice(4, 5)), strict=True):
        assert torch.equal(together[4:5], alone)


def test_what_does_not_fit_is_refused_before_memory_is_touched():
    made = Made(0, torch.float32)
    mixing, scale = made.attention(2, 3)
    taken, at = made.randn(4, 3, 8), made.placed(2, 4, 4)
    with pytest.raises(ValueError, match="position is not among"):
        spread_heads(taken, at._replace(pos=at.pos + P), mixing, scale, P)
    with pytest.raises(ValueError, match="no such row"):
        spread_heads(taken, at._replace(row=at.row + 4), mixing, scale, P)
    with pytest.raises(ValueError, match="no patterns and scales of 9 positions"):
        spread_heads(taken, at, mixing, scale, 9)
    with pytest.raises(ValueError, match="mixing must be"):
        spread_heads(taken, at, mixing[:1], scale, P)
    with pytest.raises(ValueError, match="3 heads cannot share 2"):
        mix_back(made.randn(2, P, 4, 3, 8), mixing, scale, 2)
    R, out = made.randn(2 * P, 4, 8), torch.zeros(4, 2 * P)
    with pytest.raises(ValueError, match="no such columns"):
        contract_leaves(R, [made.randn(2, P, 8)], [1], out)
    with pytest.raises(ValueError, match="leaves must be"):
        contract_leaves(R, [made.randn(2, P + 1, 8)], [0], out)
    with pytest.raises(ValueError, match="there are no leaves"):
        _C.contract_leaves(view(R), [], [], view(out))
    with pytest.raises(ValueError, match="written must be"):
        contract_written(R.unflatten(0, (2, P)), made.randn(2, P + 1, 3, 8), 0, torch.zeros(4, 2, 3))
    assert not out.any()
