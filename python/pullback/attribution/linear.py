"""The linear engine: target vectors pulled down the frozen model, without autograd and without copies of the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.attribution.columns import Columns
from pullback.attribution.local import LocalModel
from pullback.attribution.stack import Stack
from pullback.attribution.taken import Taken, Vectors
from pullback.lens.depth import at_attention, at_mlp, before_block
from pullback.ops import contract
from pullback.ops.frozen import Placed, contract_leaves, contract_written
from pullback.transcoders import in_memory


def bytes_per_target(local: LocalModel) -> int:
    """Working memory that one more target in a batch costs, about: gradients at every position, a row of edges."""
    w = local.trace.layers[0].weights
    at_heads = 4 * w.W_O.shape[0] * w.W_O.shape[1]  # at z, permuted, at the values, and those permuted
    at_stream = 3 * local.trace.embed.shape[1]  # the gradient, a larger one to take in new targets, a skip path's
    edges = 4 * local.layout.n_sources  # the row, and what its sparse form takes while it is made
    return (local.n_pos * (at_stream + at_heads) + edges) * local.trace.embed.element_size()


class Part(NamedTuple):
    """Edges of some columns. A target's are those of its column from the sources of its own prompt (`Stack.shapes`)."""

    which: slice
    edges: Tensor  # (n, n_sources)
    zeroed: Tensor  # (Q, n)


def sweep(stack: Stack, columns: Columns) -> Iterator[Part]:
    """Direct effects of the sources of every prompt of a stack on its targets, some columns at a time.

    edge[b, s] = a_s * <J^T v_b, u_s>: u_s is the decoder row, error, bias or embedding vector of source s, J the map
    through residual stream, frozen attention and norms (ARCHITECTURE, "How attribution is computed"; METHODS 1.7, 5.1).
    """
    read: dict[int, Vectors] = {}
    for which in columns.sweeps():
        part = _Sweep(stack, columns, which, read)
        part.run()
        yield Part(which, part.edges, part.zeroed)


class _Sweep:
    """Some columns, of one cone, from the top of the stream down; each joins when the sweep comes to its depth.

    Args:
        read: what heads take of the vectors at a depth, of all columns, as far as a sweep has come to it.

    Attributes:
        P: positions of the cone: nothing after the last target's matters to any of them.
        R: (Q P, joined, d), gradient at the residual stream.
        just_taken: what R consists of, if that is nothing but what attention took of targets that have just joined.
    """

    def __init__(self, stack: Stack, columns: Columns, which: slice, read: dict[int, Vectors]) -> None:
        self.stack, self.columns, self.first, self.read = stack, columns, which.start, read
        self.Q, self.P, n = stack.n_prompts, columns.reach_of(which), which.stop - which.start
        self.reach = stack.reach(self.P)
        self.edges = columns.table.new_zeros(n, self.reach.layout.n_sources)
        self.zeroed = columns.table.new_zeros(self.Q, n)
        self.R = columns.table.new_zeros(self.Q * self.P, 0, columns.table.shape[1])
        self.just_taken: Taken | None = None
        self.at_depth = torch.bincount(columns.depth[which]).tolist()

    @property
    def joined(self) -> int:
        return self.R.shape[1]

    def run(self) -> None:
        self._join_before(before_block(self.stack.n_layers))
        for i in reversed(range(self.stack.n_layers)):
            if self.joined:
                self._contract_mlp(i)
            self._through_layer(i)
            self._join_before(before_block(i))
        spans, leaves = zip(*self._stream(), strict=True)
        self._add_leaves(spans, leaves)

    def _stream(self) -> Iterator[tuple[slice, Tensor]]:
        """What the stream starts with."""
        yield self.reach.layout.embedding, self.stack.embed
        if self.stack.pos_embed is not None:
            yield self.reach.layout.position, self.stack.pos_embed

    def _contract_mlp(self, i: int) -> None:
        """Edges from everything that writes to the MLP output of layer i."""
        stack, layout = self.stack, self.reach.layout
        G = self.R.transpose(0, 1).to(stack.precision)
        for src in stack.sets.sources(i):
            active, W_dec = in_memory(self.reach.acts["features", src], stack.sets.decoder(src, i))
            contract(G, active, W_dec, out=self.edges[: self.joined, layout.features[src]])
        written_with = [("attn_bias", i)] if self._alike_behind_attention(i) else []
        self._leaves(("errors", i), ("mlp_bias", i), *written_with)
        if stack.zeroed:
            self._lose(stack.zeroed[i])

    def _alike_behind_attention(self, i: int) -> bool:
        """Whether gradients are the same where the MLP of layer i writes and where its attention does."""
        skips = i in self.stack.sets and self.stack.sets.skip(i) is not None
        return i not in self.stack.at_attention and (self.stack.layers[i].parallel or not skips)

    def _contract_attention(self, i: int) -> None:
        """Edges from everything that writes to the attention output of layer i, which autoencoders stand in for."""
        stack, layout = self.stack, self.reach.layout
        assert stack.saes is not None
        active, W_dec = in_memory(self.reach.acts["attn_features", i], stack.saes.decoder(i, i))
        G = self.R.transpose(0, 1).to(stack.precision)
        contract(G, active, W_dec, out=self.edges[: self.joined, layout.attn_features[i]])
        self._leaves(("attn_errors", i), ("attn_bias", i))
        if i in stack.attn_zeroed:
            self._lose(stack.attn_zeroed[i])

    def _through_layer(self, i: int) -> None:
        """From the stream behind layer i to the one before it, with the targets that read what its MLP reads."""
        if i in self.stack.at_attention:
            self._past_attention_features(i)
            return
        parallel = self.stack.layers[i].parallel
        through_skip = self._through_skip(i)
        # A parallel block's attention does not feed its own MLP, so what enters at the MLP's input does not reach it.
        if not parallel:
            self._add_to_gradient(through_skip)
        if self.joined and not self._alike_behind_attention(i):
            self._leaves(("attn_bias", i))
        written = self._by_what_is_written(i)
        if written and not parallel:
            self._join_at_mlp(i)
        if self.joined:
            if written:
                self._stream_through_attention()
            else:
                heads, taken = self.stack.heads[i], self.just_taken
                if taken is None or not taken.add_step(heads, self.R):
                    heads.add_pullback(self.R, None if taken is None else taken.at_z_of(heads, self.P))
                self.just_taken = None
        if parallel:
            self._add_to_gradient(through_skip)
        if not written or parallel:
            self._join_at_mlp(i)

    def _past_attention_features(self, i: int) -> None:
        """The same where features stand in for what attention writes: they are where its heads end."""
        parallel, through_skip = self.stack.layers[i].parallel, self._through_skip(i)
        if parallel and self.joined:
            self._contract_attention(i)
        self._add_to_gradient(through_skip)
        self._join_before(at_mlp(i))
        if not parallel and self.joined:
            self._contract_attention(i)
        if self._waits(at_attention(i)):
            # Nothing of them reads the stream itself.
            self._join(self._taken(i, at_attention(i), standing=False))

    def _by_what_is_written(self, i: int) -> bool:
        """Whether edges through attention are read where it writes: in the first layer, of prompts that are not long.

        Nothing but what the stream starts with lies below it, so gradients need not be pulled through.
        """
        return i == 0 and self.stack.writes_little(self.P)

    def _stream_through_attention(self) -> None:
        """Edges from what the stream starts with, by way of the first layer's attention."""
        for span, u in self._stream():
            into = self.edges[: self.joined, span].unflatten(1, (self.Q, self.P))
            for sources, written in self.stack.written_by(u, self.P):
                contract_written(self.R.unflatten(0, (self.Q, self.P)), written, sources.start, into[:, :, sources])

    def _add_to_gradient(self, through_skip: Tensor | None) -> None:
        if through_skip is not None:
            self.R += through_skip
            self.just_taken = None

    def _through_skip(self, i: int) -> Tensor | None:
        stack = self.stack
        W_skip = stack.sets.skip(i) if i in stack.sets else None
        if W_skip is None or not self.joined:
            return None
        rows = torch.arange(self.Q * stack.n_pos, device=self.R.device).view(self.Q, -1)[:, : self.P]
        read = (self.R @ W_skip).flatten(0, 1)
        rows = rows.flatten().repeat_interleave(self.joined)
        return stack.layers[i].read_pullback(stack.sets.hook_in(i), read, rows).view_as(self.R)

    def _waits(self, depth: int) -> int:
        """How many columns there are at this depth, which comes next."""
        return self.at_depth[depth] if depth < len(self.at_depth) else 0

    def _waiting(self, depth: int) -> tuple[Tensor, Placed]:
        """Vectors (u, d) at the stream of all columns at this depth, and where those that wait stand, (Q, m)."""
        start = self.first + self.joined
        return self.columns.of(slice(start, start + self._waits(depth)))

    def _join_at_mlp(self, i: int) -> None:
        """Targets that read what the MLP of layer i reads."""
        layer, depth = self.stack.layers[i], at_mlp(i)
        if not self._waits(depth):
            return
        if not layer.parallel and ("attn_bias", i) in self.stack.leaves:
            self._own_attention_bias(i, *self._waiting(depth))
        behind = not layer.parallel and not self._by_what_is_written(i)
        self._join(self._taken(i, depth, standing=True) if behind else self._standing(*self._waiting(depth)))

    def _own_attention_bias(self, i: int, vectors: Tensor, at: Placed) -> None:
        """Edges to targets that wait behind the attention of layer i from the bias in what it writes at their place."""
        span = self.edges[self.joined : self.joined + at.pos.shape[1], self.reach.layout.attn_bias[i]]
        prompt = torch.arange(self.Q, device=at.pos.device)[:, None]
        column = torch.arange(len(span), device=at.pos.device).expand_as(at.pos)
        bias = self.stack.attn_bias[i][prompt, at.pos]
        span[column, prompt * self.P + at.pos] = (vectors[at.row] * bias).sum(-1) * at.factor

    def _join_before(self, depth: int) -> None:
        """Targets that read the stream as it is at this depth."""
        if self._waits(depth):
            self._join(self._standing(*self._waiting(depth)))

    def _taken(self, i: int, depth: int, *, standing: bool) -> Taken:
        """Targets that wait behind the attention of layer i, as its heads take them; with `standing`, they read the
        stream there, and not what attention writes."""
        vectors, at = self._waiting(depth)
        if depth not in self.read:
            self.read[depth] = Vectors(self.stack.heads[i], vectors, self.columns.readers, standing=standing)
        return Taken(self.read[depth], at)

    def _standing(self, vectors: Tensor, at: Placed) -> Tensor:
        """Vectors (u, d), each of those asked for at its position of the stream and zero elsewhere, (Q P, m, d)."""
        Q, m = at.row.shape
        stream = vectors.new_zeros(Q * self.P, m, vectors.shape[1])
        rows = torch.arange(Q, device=at.pos.device)[:, None] * self.P + at.pos
        stream[rows, torch.arange(m, device=at.pos.device)] = vectors[at.row] * at.factor[..., None]
        return stream

    def _join(self, fresh: Tensor | Taken) -> None:
        gradient = fresh.spread(self.P) if isinstance(fresh, Taken) else fresh
        self.just_taken = fresh if isinstance(fresh, Taken) and not self.joined else None
        self.R = torch.cat([self.R, gradient], dim=1) if self.joined else gradient

    def _leaves(self, *which: tuple[str, int]) -> None:
        """Edges from kinds of leaves by layer, one vector a position, where there is anything to read."""
        found = [(kind, i) for kind, i in which if (kind, i) in self.stack.leaves]
        if found:
            spans = [self.reach.layout.of_kind(kind)[i] for kind, i in found]
            self._add_leaves(spans, [self.stack.leaves[leaf] for leaf in found])

    def _add_leaves(self, spans: Sequence[slice], leaves: Sequence[Tensor]) -> None:
        """Edges from leaves, each (Q, T, d)."""
        starts = [span.start for span in spans]
        contract_leaves(self.R, [u[:, : self.P] for u in leaves], starts, self.edges[: self.joined])

    def _lose(self, u: Tensor) -> None:
        """Mass of zeroed positions, (Q, T, d), that is nobody's edge."""
        lost = self._at_each_row(u).view(self.joined, self.Q, self.P)
        self.zeroed[:, : self.joined] += lost.sum(2).T

    def _at_each_row(self, u: Tensor) -> Tensor:
        """<R[row, b], u[row]>, (joined, Q P)."""
        return torch.linalg.vecdot(self.R, u[:, : self.P].reshape(len(self.R), 1, -1)).T
