"""The linear engine: target vectors pulled down the frozen model, without autograd and without copies of the prompt."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pullback.attribution.local import LocalModel
from pullback.attribution.targets import Targets, vectors_at_stream
from pullback.ops import contract
from pullback.transcoders import in_memory

CONES = 8  # groups of a prompt's positions: more of them waste less of it and make smaller products


def bytes_per_target(local: LocalModel) -> int:
    """Working memory that one more target in a batch costs, about: gradients at every position, a row of edges."""
    w = local.trace.layers[0].weights
    at_heads = 4 * w.W_O.shape[0] * w.W_O.shape[1]  # at z, permuted, at the values, and those permuted
    at_stream = 3 * local.trace.embed.shape[1]  # the gradient, a larger one to take in new targets, a skip path's
    edges = 4 * local.layout.n_sources  # the row, and what its sparse form takes while it is made
    return (local.n_pos * (at_stream + at_heads) + edges) * local.trace.embed.element_size()


def _cone(local: LocalModel, pos: Tensor) -> Tensor:
    """The group of neighbouring positions that each target belongs to."""
    return pos // -(-local.n_pos // CONES)


def linear_rows(local: LocalModel, targets: Targets) -> tuple[Tensor, Tensor]:
    """Direct effects of all sources on B targets: edges (B, n_sources), and the mass of zeroed positions (B).

    edge[b, s] = a_s * <J^T v_b, u_s>: u_s is the decoder row, error, bias or embedding vector of source s, J the map
    through residual stream, frozen attention and norms (ARCHITECTURE, "How attribution is computed"; METHODS 1.7, 5.1).
    """
    # By causal cone, and within one from the top of the stream down.
    order = torch.argsort(_cone(local, targets.pos) * (2 * local.n_layers + 1) - targets.depth, stable=True)
    ordered = replace(targets, vectors=vectors_at_stream(local, targets))[order]
    edges = targets.vectors.new_zeros(len(targets), local.layout.n_sources)
    zeroed = targets.vectors.new_zeros(len(targets))
    start = 0
    for size in torch.unique_consecutive(_cone(local, ordered.pos), return_counts=True)[1].tolist():
        rows = slice(start, start + size)
        _Sweep(local, ordered[rows], edges[rows], zeroed[rows]).run()
        start += size
    back = torch.argsort(order)
    return edges[back], zeroed[back]


class _Sweep:
    """Targets of one cone, from the highest layer down; each joins when the sweep comes to its layer.

    Attributes:
        P: positions of the cone: nothing after the last target's matters to any of them.
        R: (P, joined, d), gradient at the residual stream.
    """

    def __init__(self, local: LocalModel, targets: Targets, edges: Tensor, zeroed: Tensor) -> None:
        self.local, self.targets, self.depth = local, targets, targets.depth
        self.edges, self.zeroed = edges, zeroed
        self.P = int(targets.pos.max()) + 1
        self.R = targets.vectors.new_zeros(self.P, 0, targets.vectors.shape[1])

    @property
    def joined(self) -> int:
        return self.R.shape[1]

    def run(self) -> None:
        local, t, layout = self.local, self.local.trace, self.local.layout
        self._join_before_block(local.n_layers)
        for i in reversed(range(local.n_layers)):
            if self.joined:
                self._contract_mlp(i)
                self._through_layer(i)
            self._join_at_mlp(i)
            self._join_before_block(i)
        self._leaf(layout.embedding, t.embed)
        if t.pos_embed is not None:
            self._leaf(layout.position, t.pos_embed)

    def _contract_mlp(self, i: int) -> None:
        """Edges from everything that writes to the MLP output of layer i."""
        local, layout, edges = self.local, self.local.layout, self.edges[: self.joined]
        G = self.R.transpose(0, 1).to(local.precision)
        for src in local.sets.sources(i):
            acts = local.acts[src][: self.P]
            active, W_dec = in_memory(acts, local.sets.decoder(src, i))
            contract(G, active, W_dec, out=edges[:, layout.features[src]][:, : acts.nnz])
        self._leaf(layout.errors[i], local.errors[i])
        if i in local.mlp_bias:
            self._leaf(layout.mlp_bias[i], local.mlp_bias[i])
        if local.zeroed is not None:
            self.zeroed[: self.joined] += _at_each_position(self.R, local.zeroed[i]).sum(1)

    def _through_layer(self, i: int) -> None:
        """From the stream behind layer i to the one before it."""
        local, layer = self.local, self.local.trace.layers[i]
        through_skip = self._through_skip(i)
        # A parallel block's attention does not feed its own MLP, so what enters at the MLP's input does not reach it.
        if through_skip is not None and not layer.parallel:
            self.R += through_skip
        self._leaf(local.layout.attn_bias[i], local.attn_bias[i])
        local.heads[i].add_pullback(self.R)
        if through_skip is not None and layer.parallel:
            self.R += through_skip

    def _through_skip(self, i: int) -> Tensor | None:
        local = self.local
        W_skip = local.sets.skip(i) if i in local.sets else None
        if W_skip is None:
            return None
        positions = torch.arange(self.P, device=self.R.device).repeat_interleave(self.joined)
        read = (self.R @ W_skip).flatten(0, 1)
        return local.trace.layers[i].read_pullback(local.sets.hook_in(i), read, positions).view_as(self.R)

    def _waiting(self, depth: int) -> tuple[slice, Tensor, Tensor]:
        """Targets at this depth, which come next: their rows, vectors at the stream, and positions."""
        rows = slice(self.joined, self.joined + int((self.depth == depth).sum()))
        return rows, self.targets.vectors[rows], self.targets.pos[rows]

    def _join_at_mlp(self, i: int) -> None:
        """Targets that read what the MLP of layer i reads."""
        local, layer = self.local, self.local.trace.layers[i]
        rows, vectors, pos = self._waiting(2 * i + 1)
        if rows.start == rows.stop:
            return
        fresh = self._standing(vectors, pos)
        if not layer.parallel:
            bias = (vectors * local.attn_bias[i][pos]).sum(1)
            self.edges[rows, local.layout.attn_bias[i]][torch.arange(len(pos), device=pos.device), pos] = bias
            local.heads[i].add_pullback_of(fresh, vectors, pos)
        self._join(fresh)

    def _join_before_block(self, i: int) -> None:
        """Targets that read the stream before layer i; n_layers: behind the last block."""
        rows, vectors, pos = self._waiting(2 * i)
        if rows.start < rows.stop:
            self._join(self._standing(vectors, pos))

    def _standing(self, vectors: Tensor, pos: Tensor) -> Tensor:
        """Vectors (m, d), each at its position of the stream and zero elsewhere, (P, m, d)."""
        m, d = vectors.shape
        stream = vectors.new_zeros(self.P, m, d)
        stream[pos, torch.arange(m, device=pos.device)] = vectors
        return stream

    def _join(self, fresh: Tensor) -> None:
        self.R = torch.cat([self.R, fresh], dim=1) if self.joined else fresh

    def _leaf(self, span: slice, u: Tensor) -> None:
        """Edges from one vector a position, (T, d)."""
        self.edges[: self.joined, span][:, : self.P] = _at_each_position(self.R, u)


def _at_each_position(R: Tensor, u: Tensor) -> Tensor:
    """<R[p, b], u[p]> for one vector a position: (P, B, d), (T, d) -> (B, P)."""
    return (R @ u[: len(R), :, None]).squeeze(-1).T
