"""How a reading vector passes a norm (METHODS 1.6)."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from pullback.attribution import targets as at
from pullback.attribution.heads import Heads
from pullback.attribution.local import LocalModel
from pullback.attribution.pullbacks.norms import ratio
from pullback.attribution.targets import Targets, vectors_at_stream
from pullback.lens import Norm
from pullback.lens.depth import before_block
from pullback.lens.weights import NO_NORM


class FrozenNorms:
    """Denominators are constants: linear, the same for every vector, and the norm's bias is a leaf."""

    def __init__(self, local: LocalModel) -> None:
        self.local = local
        self._values: dict[int, Tensor] = {}

    def before_mlp(self, layer: int, v: Tensor, pos: Tensor) -> Tensor:
        """Vectors (n, d) that read a transcoder's input, as they read the stream."""
        return self.local.trace.layers[layer].read_pullback(self.local.sets.hook_in(layer), v, pos)

    def root(self, target: Targets) -> tuple[Tensor, Tensor]:
        """One functional's vector at the stream, (1, d), and its constant, (1)."""
        return vectors_at_stream(self.local.stack, target), target.own

    def own(self, layer: int, ids: Tensor, rows: Tensor) -> Tensor:
        """Constants of features whose encoder rows (n, d) read the stream, (n)."""
        bias = self.local.trace.layers[layer].read_bias(self.local.sets.hook_in(layer))
        return self.local.sets.b_enc(layer)[ids] + rows @ bias

    def heads(self, layer: int) -> Heads:
        return self.local.heads[layer]

    def values(self, layer: int) -> Tensor:
        """What heads take from every position, (n_heads, T, d_head), to be mixed by `heads(layer).mixing`."""
        if layer not in self._values:
            self._values[layer] = self.heads(layer).values(self._read_by_attention(layer))
        return self._values[layer]

    def before_attention(self, layer: int, v: Tensor, pos: Tensor) -> Tensor:
        """Vectors (n, d) of `Heads.at_stream`, as they read the stream. (W_V has the norm's weight and centring.)"""
        return v * self.heads(layer).read_scale[0, pos]

    def skipped(self, layer: int) -> Tensor:
        """What `before_mlp` of a skip path reads, (T, d)."""
        return self.local.trace.layers[layer].mlp_stream

    def attn_bias(self, layer: int) -> Tensor:
        return self.local.attn_bias[layer]

    def mlp_bias(self, layer: int) -> Tensor:
        return self.local.mlp_bias[layer]

    def _read_by_attention(self, layer: int) -> Tensor:
        return self.local.trace.layers[layer].x_pre


class RatioNorms(FrozenNorms):
    """A norm is the factor <v, LN(x)> / <v, x>, 0 where <v, x> is: each vector has one of its own, of either sign,
    which takes centring and bias into itself. It is what Dunefsky et al. compute."""

    def before_mlp(self, layer: int, v: Tensor, pos: Tensor) -> Tensor:
        trace = self.local.trace.layers[layer]
        return _scaled(v, trace.read(self.local.sets.hook_in(layer))[pos], trace.mlp_stream[pos])

    def root(self, target: Targets) -> tuple[Tensor, Tensor]:
        t, v, pos = self.local.trace, target.vectors, target.pos
        layer, site = int(target.layer), int(target.site)
        if site == at.BEFORE_BLOCK:
            return v, target.own
        if site == at.FINAL:
            x = t.stream(before_block(layer))
            normed, bias = t.ln_final(x, t.final_scale), t.ln_final.bias_vector(v[0])
        else:
            x, hook = t.layers[layer].mlp_stream, at.SITES[site]
            normed, bias = t.layers[layer].read(hook), t.layers[layer].read_bias(hook)
        return _scaled(v, normed[pos], x[pos]), target.own - v @ bias

    def own(self, layer: int, ids: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        return self.local.sets.b_enc(layer)[ids]

    def heads(self, layer: int) -> Heads:
        return self._heads[layer]

    def before_attention(self, layer: int, v: Tensor, pos: Tensor) -> Tensor:
        return _scaled(v, self._read_by_attention(layer)[pos], self.local.trace.layers[layer].x_pre[pos])

    def attn_bias(self, layer: int) -> Tensor:
        trace = self.local.trace.layers[layer]
        w = trace.weights
        values = w.b_V[:, None].expand(-1, self.local.n_pos, -1)
        return w.attend(trace.mixing, values) + trace.attn_bias

    def mlp_bias(self, layer: int) -> Tensor:
        return self.local.sets.b_dec(layer).expand(self.local.n_pos, -1)

    @cached_property
    def _heads(self) -> list[Heads]:
        made = []
        for trace in self.local.trace.layers:
            bare = replace(trace.weights, ln1=Norm(NO_NORM, None, None))
            unnormed = replace(trace, weights=bare, ln1_scale=torch.ones_like(trace.ln1_scale))
            made.append(Heads(type(trace).stacked([unnormed]), self.local.precision))
        return made

    def _read_by_attention(self, layer: int) -> Tensor:
        trace = self.local.trace.layers[layer]
        return trace.weights.ln1(trace.x_pre, trace.ln1_scale)


def norms_of(local: LocalModel, ln: str) -> FrozenNorms:
    """By the names of `pullbacks.norms`."""
    return FrozenNorms(local) if ln == "frozen" else RatioNorms(local)


def _scaled(v: Tensor, normed: Tensor, x: Tensor) -> Tensor:
    return v * ratio(torch.linalg.vecdot(v, normed), torch.linalg.vecdot(v, x))[:, None]
