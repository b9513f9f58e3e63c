"""The linear engine: target vectors pulled down the frozen model, without autograd and without copies of the prompt.

edge[b, s] = a_s * <J^T v_b, u_s>: u_s is the decoder row, error, bias or embedding vector of source s, J the map
through residual stream, frozen attention and norms (ARCHITECTURE, "How attribution is computed"; METHODS 1.7, 5.1).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pullback.attribution.local import LocalModel
from pullback.attribution.stack import Stack
from pullback.lens.depth import at_attention, at_mlp, before_block
from pullback.transcoders import Rows

Source = tuple[str, int]  # kind and layer, as in `Layout.spans`


def bytes_per_target(local: LocalModel) -> int:
    """Working memory that one more target in a batch costs, about: gradients at every position, what heads take of it,
    a row of edges."""
    w = local.trace.layers[0].weights
    at_heads = 4 * w.W_O.shape[0] * w.W_O.shape[1]  # at z, permuted, at the values, and those permuted
    at_stream = 3 * local.trace.embed.shape[1]  # the gradient, a larger one to take in new targets, a skip path's
    taken = (1 + w.W_O.shape[0]) * local.trace.embed.shape[1]
    edges = 4 * local.layout.n_sources  # the row, and what its sparse form takes while it is made
    return (local.n_pos * (at_stream + at_heads) + taken + edges) * local.trace.embed.element_size()


class Gradients(Protocol):
    """Targets of every prompt of a stack, as they read the residual stream at the depth that a sweep has come to, and
    the edges found on the way.

    Attributes:
        P: the first positions, all that matter to them.
    """

    P: int

    @property
    def joined(self) -> bool:
        """Whether there are any at this depth or above."""
        ...

    def waits(self, depth: int) -> bool:
        """Whether some read at this depth, which comes next."""
        ...

    def stand(self, depth: int) -> None:
        """They join, each at its position."""
        ...

    def take(self, depth: int, i: int, *, standing: bool) -> None:
        """They join below the attention of layer i, as its heads take them; with `standing`, they read the stream
        behind it, and not what it writes."""
        ...

    def contract(self, source: Source, W_dec: Rows) -> None:
        """Edges from features, by these decoder rows."""
        ...

    def leaves(self, *sources: Source) -> None:
        """Edges from what writes one vector a position."""
        ...

    def own(self, source: Source, depth: int) -> None:
        """Edges from a leaf to those that wait at a depth, at their own position."""
        ...

    def through_heads(self, i: int) -> None:
        """From the stream behind the attention of layer i to the one before it."""
        ...

    def written(self, source: Source) -> None:
        """Edges from what the stream starts with, by way of the first layer's attention."""
        ...

    def lose(self, u: Tensor) -> None:
        """Mass of zeroed positions, (Q, T, d), that is nobody's edge."""
        ...

    def through_skip(self, i: int, W_skip: Tensor) -> Tensor:
        """What they are before the skip path of layer i."""
        ...

    def add(self, more: Tensor) -> None: ...


class Sweep:
    """From the top of the stream down; targets join when the sweep comes to their depth."""

    def __init__(self, stack: Stack, gradients: Gradients) -> None:
        self.stack, self.at = stack, gradients

    def run(self) -> None:
        self._join_before(before_block(self.stack.n_layers))
        for i in reversed(range(self.stack.n_layers)):
            if self.at.joined:
                self._contract_mlp(i)
            self._through_layer(i)
            self._join_before(before_block(i))
        self.at.leaves(*self.stack.stream)

    def _contract_mlp(self, i: int) -> None:
        """Edges from everything that writes to the MLP output of layer i."""
        stack = self.stack
        for src in stack.sets.sources(i):
            self.at.contract(("features", src), stack.sets.decoder(src, i))
        written_with = [("attn_bias", i)] if self._alike_behind_attention(i) else []
        self._leaves(("errors", i), ("mlp_bias", i), *written_with)
        if stack.zeroed:
            self.at.lose(stack.zeroed[i])

    def _alike_behind_attention(self, i: int) -> bool:
        """Whether gradients are the same where the MLP of layer i writes and where its attention does."""
        return i not in self.stack.at_attention and (self.stack.layers[i].parallel or self.stack.skip(i) is None)

    def _contract_attention(self, i: int) -> None:
        """Edges from everything that writes to the attention output of layer i, which autoencoders stand in for."""
        stack = self.stack
        assert stack.saes is not None
        self.at.contract(("attn_features", i), stack.saes.decoder(i, i))
        self._leaves(("attn_errors", i), ("attn_bias", i))
        if i in stack.attn_zeroed:
            self.at.lose(stack.attn_zeroed[i])

    def _through_layer(self, i: int) -> None:
        """From the stream behind layer i to the one before it, with the targets that read what its MLP reads."""
        if i in self.stack.at_attention:
            self._past_attention_features(i)
            return
        parallel = self.stack.layers[i].parallel
        through_skip = self._through_skip(i)
        # A parallel block's attention does not feed its own MLP, so what enters at the MLP's input does not reach it.
        if not parallel:
            self._add(through_skip)
        if self.at.joined and not self._alike_behind_attention(i):
            self._leaves(("attn_bias", i))
        written = self._by_what_is_written(i)
        if written and not parallel:
            self._join_at_mlp(i)
        if self.at.joined:
            if written:
                for source in self.stack.stream:
                    self.at.written(source)
            else:
                self.at.through_heads(i)
        if parallel:
            self._add(through_skip)
        if not written or parallel:
            self._join_at_mlp(i)

    def _past_attention_features(self, i: int) -> None:
        """The same where features stand in for what attention writes: they are where its heads end."""
        parallel, through_skip = self.stack.layers[i].parallel, self._through_skip(i)
        if parallel and self.at.joined:
            self._contract_attention(i)
        self._add(through_skip)
        self._join_before(at_mlp(i))
        if not parallel and self.at.joined:
            self._contract_attention(i)
        if self.at.waits(at_attention(i)):
            # Nothing of them reads the stream itself.
            self.at.take(at_attention(i), i, standing=False)

    def _by_what_is_written(self, i: int) -> bool:
        """Whether edges through attention are read where it writes: in the first layer, of prompts that are not long.

        Nothing but what the stream starts with lies below it, so gradients need not be pulled through.
        """
        return i == 0 and self.stack.writes_little(self.at.P)

    def _through_skip(self, i: int) -> Tensor | None:
        W_skip = self.stack.skip(i)
        return None if W_skip is None or not self.at.joined else self.at.through_skip(i, W_skip)

    def _add(self, through_skip: Tensor | None) -> None:
        if through_skip is not None:
            self.at.add(through_skip)

    def _join_at_mlp(self, i: int) -> None:
        """Targets that read what the MLP of layer i reads."""
        depth, parallel = at_mlp(i), self.stack.layers[i].parallel
        if not self.at.waits(depth):
            return
        if not parallel and ("attn_bias", i) in self.stack.leaves:
            self.at.own(("attn_bias", i), depth)
        if parallel or self._by_what_is_written(i):
            self.at.stand(depth)
        else:
            self.at.take(depth, i, standing=True)

    def _join_before(self, depth: int) -> None:
        """Targets that read the stream as it is at this depth."""
        if self.at.waits(depth):
            self.at.stand(depth)

    def _leaves(self, *sources: Source) -> None:
        """Edges from leaves, where there is anything to read."""
        found = [source for source in sources if source in self.stack.leaves]
        if found:
            self.at.leaves(*found)
