"""Gradients on their way down, tile by tile: every step against its sums written out in float64, between margins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pullback import _C
from pullback.ops.cpu.borrow import view
from pullback.ops.reference import frozen
from tests.ops.cases import pattern
from tests.ops.test_known_defects import Guarded, random

Q, T, H, D_HEAD, U, F = 2, 3, 4, 5, 7, 9
LEAVES = 5  # the same one: more than are multiplied at a time
FEW, MANY = 5, 70  # targets of a prompt: those of many are contracted by panels


class Case:
    """Two tiles of each prompt, one of positions 0 and 1 and one of all; a row lists the features there, a leaf, what
    sources 1 and 2 bring, and the leaf at the target itself."""

    def __init__(self, n: int, d: int, n_kv: int) -> None:
        self.guarded, self.n, self.d = Guarded(), n, d
        self.acts = pattern(Q * T, F, 4, torch.float32, seed=d)
        self.W, self.leaf, self.written = random(1, F, d), random(2, Q, T, d), random(3, Q, T, 2, d)
        for p in range(T):
            self.written[:, p, p:] = 0  # sources 1 and 2 bring nothing before their own positions
        self.table, self.taken = random(4, U, d), random(5, U, H, d)
        self.mixing, self.scale = random(6, Q, H, T, T).tril(), random(7, Q, T)
        self.to_z, self.from_v = random(8, d, H * D_HEAD), random(9, n_kv * D_HEAD, d)
        generator = torch.Generator().manual_seed(n)
        self.row = torch.randint(0, U, (Q * n,), generator=generator)
        self.factor = torch.randint(0, 3, (Q * n,), generator=generator).float()
        half = n // 2
        self.pos = torch.cat([torch.randint(0, P, (m,), generator=generator) for _ in range(Q) for P, m in self.sizes])
        self.prompts = torch.tensor([0, 0, 1, 1])
        self.positions, counts = torch.tensor([2, 3, 2, 3]), torch.tensor([half, n - half] * Q)
        firsts = counts.cumsum(0) - counts
        starts = self.acts.indptr[self.prompts * T]
        features = self.acts.indptr[self.prompts * T + self.positions] - starts
        sizes = torch.stack([features, self.positions, self.positions, self.positions])
        self.to, lengths = sizes.cumsum(0) - sizes, sizes.sum(0)
        ends = (counts * lengths).cumsum(0)
        self.tiles = [self.prompts, self.positions, firsts, counts, ends - counts * lengths, lengths]
        self.values = self.guarded(torch.full((int(ends[-1]),), torch.nan))  # all of them are written

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(2, self.n // 2), (3, self.n - self.n // 2)]

    def run(self, alone: bool) -> None:
        g = self.guarded
        lent: list[Tensor] = []

        def lend(t: Tensor, gap: int = 0) -> Any:
            """Between margins, with rows apart where an op takes them so; kept until all is done."""
            flat = g(t.reshape(-1, t.shape[-1]) if t.ndim > 1 else t, gap)
            width = t.shape[-1] + gap
            strides = [width * s // t.shape[-1] for s in t.stride()[:-1]] + [1]
            lent.append(flat if t.ndim == 1 else flat.as_strided(t.shape, strides, flat.storage_offset()))
            return view(lent[-1])

        at = [lend(t) for t in (self.row, self.factor, self.pos)]
        self.nonzero = g(torch.full_like(self.row, -1))
        descent = _C.Descent([lend(t) for t in self.tiles], *at, view(self.values), view(self.nonzero), Q, self.d)
        table = lend(self.table, gap=2)
        descent.contract_own(table, lend(self.leaf, gap=1), lend(self.to[3]))
        mixing, scale = lend(self.mixing), lend(self.scale, gap=1)
        if alone:
            nothing = self.taken[:, :0]
            lent.append(nothing)
            descent.spread(view(nothing), view(self.mixing[:, :0]), scale, table, False)
        else:
            descent.spread(lend(self.taken), mixing, scale, table, False)
            descent.spread(lend(self.taken), mixing, scale, None, True)
            descent.through_heads(lend(self.to_z), mixing, scale, lend(self.from_v), H)
        indptr, ids, values = (lend(t) for t in (self.acts.indptr, self.acts.indices, self.acts.values))
        descent.contract(indptr, ids, values, lend(self.W, gap=3), T, lend(self.to[0]))
        descent.contract_leaves([lend(self.leaf, gap=1)] * LEAVES, [lend(self.to[1])] * LEAVES)
        descent.contract_written(lend(self.written, gap=1), 1, lend(self.to[2]))
        descent.run()
        g.check()

    def expected(self, alone: bool) -> Tensor:
        table, taken, mixing, scale = (t.double() for t in (self.table, self.taken, self.mixing, self.scale))
        out: list[Tensor] = []
        for t in range(len(self.prompts)):
            q, P, first, n, _, length = (int(column[t]) for column in self.tiles)
            own, prompt = slice(first, first + n), slice(q, q + 1)
            placed = self.row[own][None], self.factor[own].double()[None], self.pos[own][None]
            about = mixing[prompt], scale[prompt], P
            if alone:
                R = torch.zeros(P, n, self.d, dtype=torch.float64)
                R[placed[2][0], torch.arange(n)] = table[placed[0][0]] * placed[1][0][:, None]
            else:
                R = frozen.spread_heads(taken, *placed, *about, table)
                R += frozen.spread_heads(taken, *placed, *about, None)
                at_z = (R @ self.to_z.double()).view(1, P, n, H, D_HEAD)
                n_kv = len(self.from_v) // D_HEAD
                at_v = frozen.mix_back(at_z, mixing[prompt], scale[prompt], n_kv, (P, n))
                R = R + at_v.reshape(P, n, -1) @ self.from_v.double()
            edges = torch.zeros(n, length, dtype=torch.float64)
            acts = self.acts[q * T : q * T + P]
            rows = self.W.double()[acts.indices.long()] * acts.values.double()[:, None]
            edges[:, : acts.nnz] = torch.einsum("ebd,ed->be", R[acts.rows()], rows)
            leaf, written = self.leaf[q, :P].double(), self.written[q, :P, : P - 1].double()
            edges[:, self.to[1, t] :][:, :P] = LEAVES * torch.einsum("pbd,pd->bp", R, leaf)
            edges[:, self.to[2, t] :][:, 1:P] = torch.einsum("pbd,psd->bs", R, written)
            at_own = (table[self.row[own]] * leaf[self.pos[own]]).sum(1) * self.factor[own]
            edges[torch.arange(n), self.to[3, t] + self.pos[own]] += at_own
            out.append(edges.flatten())
        return torch.cat(out)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("n", [FEW, MANY])
@pytest.mark.parametrize("d", [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 48, 63, 64, 65, 70])
def test_every_step(isa: str, d: int, n: int, alone: bool) -> None:
    case = Case(n, d, n_kv=(1, 2, 4)[d % 3])
    case.run(alone)
    expected = case.expected(alone)
    torch.testing.assert_close(case.values.double(), expected, rtol=0, atol=3e-6 * float(expected.abs().max()))
    lengths = case.tiles[-1].repeat_interleave(case.tiles[3]).tolist()
    assert case.nonzero.tolist() == [int(row.count_nonzero()) for row in case.values.split(lengths)]


class TestWhatDoesNotFitIsRefused:
    """Two tiles of two targets of one prompt of three positions, vectors of 4, rows of 6 edges."""

    def setup_method(self) -> None:
        def columns(*values: int) -> Tensor:
            return torch.tensor(values)

        self.tiles = [columns(0, 0), columns(2, 3), columns(0, 2), columns(2, 2), columns(0, 12), columns(6, 6)]
        self.row, self.factor, self.pos = columns(0, 1, 1, 0), torch.ones(4), columns(0, 1, 2, 2)
        self.values, self.to = torch.zeros(24), columns(0, 3)
        self.lent: list[Tensor] = []

    def made(self, **changed: Tensor) -> _C.Descent:
        nonzero = torch.zeros_like(self.row)
        at = {"row": self.row, "factor": self.factor, "pos": self.pos, "values": self.values, "nonzero": nonzero}
        at |= changed
        self.lent += [*self.tiles, *at.values()]
        return _C.Descent([view(t) for t in self.tiles], *(view(t) for t in at.values()), 1, 4)

    @pytest.mark.parametrize(("column", "value"), [(0, 1), (1, 0), (2, 3), (3, -1), (4, 13), (5, 7)])
    def test_tiles(self, column: int, value: int) -> None:
        self.tiles[column][1] = value
        with pytest.raises(ValueError, match="tile 1 does not lie within"):
            self.made()

    def test_targets(self) -> None:
        with pytest.raises(ValueError, match="outside its tile"):
            self.made(pos=self.pos + 1)
        with pytest.raises(ValueError, match="factor must"):
            self.made(factor=torch.ones(3))
        with pytest.raises(ValueError, match="nonzero must"):
            self.made(nonzero=self.row[1:].contiguous())

    def test_steps(self) -> None:
        descent = self.made()
        table, mixing, scale = torch.ones(2, 3, 4), torch.ones(1, 3, 3, 3), torch.ones(1, 3)
        with pytest.raises(ValueError, match="no such row"):
            descent.spread(view(table[:1]), view(mixing), view(scale), None, False)
        with pytest.raises(ValueError, match="no patterns and scales of 3 positions"):
            descent.spread(view(table), view(mixing[..., :2]), view(scale), None, False)
        # Views lend memory, so what they are of has names here.
        leaf, beyond, written, square = torch.ones(1, 3, 4), self.to + 1, torch.ones(1, 3, 3, 4), torch.ones(4, 4)
        descent.contract_leaves([view(leaf)], [view(self.to)])
        with pytest.raises(ValueError, match="no such columns"):
            descent.contract_leaves([view(leaf)], [view(beyond)])
        with pytest.raises(ValueError, match="as many positions"):
            descent.contract_leaves([view(leaf[:, :2])], [view(self.to)])
        with pytest.raises(ValueError, match="no such columns"):
            descent.contract_own(view(table[:, 0]), view(leaf), view(beyond))
        with pytest.raises(ValueError, match="no such columns"):
            descent.contract_written(view(written), 1, view(beyond))
        with pytest.raises(ValueError, match="3 heads cannot read 4"):
            descent.through_heads(view(square), view(mixing), view(scale), view(square), 3)
        indptr, ids, values = torch.tensor([0, 2, 4, 4]), torch.zeros(4, dtype=torch.int32), torch.ones(4)
        W = torch.ones(1, 4)
        with pytest.raises(ValueError, match="no such columns"):
            descent.contract(view(indptr), view(ids), view(values), view(W), 3, view(self.to))
        assert not self.values.any()
