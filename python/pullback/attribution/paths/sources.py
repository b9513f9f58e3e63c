"""What reading vectors read: contributions of every source to a batch of them at once (METHODS 1.5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.local import LocalModel
from pullback.attribution.nodes import BIAS_KINDS
from pullback.attribution.paths.nodes import HEAD, SKIP, Columns
from pullback.attribution.paths.norms import FrozenNorms
from pullback.attribution.paths.readings import EMBED, Readings
from pullback.lens.depth import at_attention, at_mlp
from pullback.ops import SparseActivations, contract
from pullback.transcoders import in_memory

ATTN, MLP = BIAS_KINDS.index("attn"), BIAS_KINDS.index("mlp")


@dataclass(frozen=True)
class Block:
    """Sources of one kind and layer, for the n readings that see them; what contributes 0 is none.

    owner: (n), places of the readings. index, pos, activation: (n, m), or (1, m) where they are the same for all;
    activation is 1 for all but features. contribution: (n, m), to the root.
    """

    kind: int
    layer: int
    owner: Tensor
    index: Tensor
    pos: Tensor
    contribution: Tensor
    activation: Tensor

    def picked(self, score: Tensor, most: int | None) -> Candidates:
        """The `most` of each reading with the highest score (n, m), all for None; those with -inf are left out."""
        if most is None or most >= score.shape[1]:
            row, at = torch.isfinite(score).nonzero(as_tuple=True)
        else:
            best = score.topk(most, dim=1)
            row, slot = torch.isfinite(best.values).nonzero(as_tuple=True)
            at = best.indices[row, slot]

        def column(t: Tensor) -> Tensor:
            return t.expand_as(score)[row, at]

        owner = self.owner[row]
        return Candidates(
            owner=owner,
            kind=torch.full_like(owner, self.kind),
            layer=torch.full_like(owner, self.layer),
            index=column(self.index),
            pos=column(self.pos),
            contribution=column(self.contribution),
            activation=column(self.activation),
        )


@dataclass(frozen=True, eq=False)
class Candidates(Columns):
    """Sources that paths may go on to, (n) each; `owner` is the reading that each contributes to."""

    owner: Tensor
    kind: Tensor
    layer: Tensor
    index: Tensor
    pos: Tensor
    contribution: Tensor
    activation: Tensor


class Sources:
    """The sources of one prompt.

    Args:
        leaves: whether errors, biases and readings' own constants are among them.
        together: embedding and position are one source, as in the reference code.
        ignored: source positions that attention is not followed to.
    """

    def __init__(
        self, local: LocalModel, norms: FrozenNorms, *, leaves: bool, together: bool, ignored: list[int]
    ) -> None:
        self.local, self.norms, self.leaves, self.ignored = local, norms, leaves, ignored
        t = local.trace
        self.start = [(k.EMBEDDING, t.embed)]
        if t.pos_embed is not None:
            both = t.embed + t.pos_embed
            self.start = [(k.EMBEDDING, both)] if together else [*self.start, (k.POSITION, t.pos_embed)]

    @property
    def n_heads(self) -> int:
        return self.local.trace.layers[0].weights.W_O.shape[0]

    def blocks(self, r: Readings) -> Iterator[Block]:
        for layer in reversed(range(self.local.n_layers)):
            yield from self._of_mlp(r, layer)
            yield from self._of_attention(r, layer)
        for kind, u in self.start:
            ids = self.local.trace.tokens if kind == k.EMBEDDING else torch.full_like(self.local.trace.tokens, -1)
            yield from self._vector(r, EMBED, kind, -1, u, ids[r.pos])
        if self.leaves:
            yield from self._constants(r)

    # ---- MLPs -----------------------------------------------------------------------------------------------------

    def _of_mlp(self, r: Readings, layer: int) -> Iterator[Block]:
        local, depth = self.local, at_mlp(layer)
        if layer in local.acts:
            yield from self._features(r, layer)
        if layer in local.sets and local.sets.skip(layer) is not None:
            yield from self._skip(r, layer)
        if self.leaves:
            yield from self._vector(r, depth, k.ERROR, layer, local.errors[layer])
            if layer in local.mlp_bias:
                yield from self._vector(r, depth, k.BIAS, layer, self.norms.mlp_bias(layer), MLP)

    def _features(self, r: Readings, layer: int) -> Iterator[Block]:
        """z <W_dec, v>, over all layers that a feature writes to below the reading; active ones only."""
        sets, acts = self.local.sets, self.local.acts[layer]
        seen = {to: r.sees(at_mlp(to)) for to in sets.targets(layer)}
        owner = torch.stack(list(seen.values())).any(0).nonzero()[:, 0]
        active = _rows(acts, r.pos[owner])
        if not active.nnz:
            return
        edges = active.values.new_zeros(1, active.nnz)
        for to, sees in seen.items():
            rows = r.vectors[owner] * sees[owner, None]
            contract(rows[None], *in_memory(active, sets.decoder(layer, to)), out=edges)
        row, within = active.rows(), torch.arange(active.nnz, device=edges.device)
        within = within - active.indptr[row]

        def padded(flat: Tensor) -> Tensor:
            return flat.new_zeros(len(owner), int(within.max()) + 1).index_put((row, within), flat)

        pos = r.pos[owner, None]
        yield Block(
            k.FEATURE, layer, owner, padded(active.indices.long()), pos, padded(edges[0]), padded(active.values)
        )

    def _skip(self, r: Readings, layer: int) -> Iterator[Block]:
        owner = r.sees(at_mlp(layer)).nonzero()[:, 0]
        if len(owner):
            v = through_skip(self.local, self.norms, layer, r[owner])
            read = torch.linalg.vecdot(v, self.norms.skipped(layer)[r.pos[owner]])
            yield _one_each(SKIP, layer, owner, r.pos[owner], read)

    # ---- attention ------------------------------------------------------------------------------------------------

    def _of_attention(self, r: Readings, layer: int) -> Iterator[Block]:
        """Pattern times <what a head takes from a position, v>, for every head and source position."""
        owner = r.sees(at_attention(layer)).nonzero()[:, 0]
        if not len(owner):
            return
        heads = self.norms.heads(layer)
        at_z = heads.at_z(r.vectors[owner]).transpose(0, 1)
        taken = at_z @ self.norms.values(layer).transpose(1, 2)  # (n_heads, n, T)
        moved = taken * heads.mixing[0][:, r.pos[owner]]
        moved[:, :, self.ignored] = 0
        H, _, T = moved.shape
        head, pos = torch.cartesian_prod(*(torch.arange(n, device=owner.device) for n in (H, T))).T
        contribution = moved.transpose(0, 1).flatten(1).to(r.vectors.dtype)
        yield Block(HEAD, layer, owner, head[None], pos[None], contribution, contribution.new_ones(1, 1))
        if self.leaves:
            bias = self.norms.attn_bias(layer)
            yield from self._vector(r, at_attention(layer), k.BIAS, layer, bias, ATTN)

    # ---- one vector a position ------------------------------------------------------------------------------------

    def _vector(
        self, r: Readings, depth: int, kind: int, layer: int, u: Tensor, index: Tensor | int = -1
    ) -> Iterator[Block]:
        """A source that writes u (T, d)."""
        owner = r.sees(depth).nonzero()[:, 0]
        if len(owner):
            pos = r.pos[owner]
            of_owner = index[owner] if isinstance(index, Tensor) else index
            yield _one_each(kind, layer, owner, pos, torch.linalg.vecdot(r.vectors[owner], u[pos]), of_owner)

    def _constants(self, r: Readings) -> Iterator[Block]:
        """Own leaves. Whose they are, only the searcher knows: their layer and index are its to fill in."""
        owner = r.own.nonzero()[:, 0]
        if len(owner):
            yield _one_each(k.OWN, -1, owner, r.pos[owner], r.own[owner])


def through_skip(local: LocalModel, norms: FrozenNorms, layer: int, r: Readings) -> Tensor:
    """Readings behind a skip connection as they read the stream before it, (n, d)."""
    W_skip = local.sets.skip(layer)
    assert W_skip is not None
    return norms.before_mlp(layer, r.vectors @ W_skip, r.pos)


def _one_each(
    kind: int, layer: int, owner: Tensor, pos: Tensor, contribution: Tensor, index: Tensor | int = -1
) -> Block:
    index = index if isinstance(index, Tensor) else torch.full_like(owner, index)
    one = contribution.new_ones(1, 1)
    return Block(kind, layer, owner, index[:, None], pos[:, None], contribution[:, None], one)


def _rows(acts: SparseActivations, rows: Tensor) -> SparseActivations:
    """The given rows (n), in that order, repeated where they are."""
    counts = acts.indptr.diff()[rows]
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    shift = (acts.indptr[rows] - indptr[:-1]).repeat_interleave(counts)
    entries = shift + torch.arange(len(shift), device=shift.device)
    return SparseActivations(indptr, acts.indices[entries], acts.values[entries], acts.n_features)
