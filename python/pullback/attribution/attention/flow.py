"""Vectors on their way through the frozen model, up from sources or down from targets, with its heads or without.

A field is rows of vectors (r, d) of the stream with the position of each (r). Without heads nothing leaves its
position, so a field has a row a vector; with them it has one for every position of every vector, positions first.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pullback.attribution.attention.endpoints import EMBED, Reads, Sources, behind_attention, behind_mlp
from pullback.attribution.local import LocalModel
from pullback.lens import LayerTrace


def values(layer: LayerTrace, x: Tensor, pos: Tensor) -> Tensor:
    """What rows x (r, d) of the stream are as values, (n_kv, r, d_head); linear, so without biases."""
    return layer.weights.ln1.linear(x) / layer.ln1_scale[pos] @ layer.weights.W_V


def per_head(layer: LayerTrace, by_kv: Tensor) -> Tensor:
    """(n_kv, ...) -> (n_heads, ...): a key/value head serves its group of query heads."""
    return by_kv.repeat_interleave(layer.weights.W_O.shape[0] // by_kv.shape[0], dim=0)


def brought(layer: LayerTrace, to: int) -> Tensor:
    """What each head brings to one position from every position, biases apart, before W_O: (n_heads, T, d_head)."""
    every = torch.arange(len(layer.x_pre), device=layer.x_pre.device)
    return layer.mixing[:, to, :, None] * per_head(layer, values(layer, layer.x_pre, every))


def read(layer: LayerTrace, field: Tensor) -> Tensor:
    """A field with heads, as its heads read it at each position: (T n, d) -> (n_heads, T, n, d_head)."""
    T = layer.x_pre.shape[0]
    pos = torch.arange(T, device=field.device).repeat_interleave(len(field) // T)
    return per_head(layer, values(layer, field, pos)).unflatten(1, (T, -1))


def mixed(layer: LayerTrace, field: Tensor) -> Tensor:
    """A field with heads, as its heads hand it on before W_O: (T n, d) -> (n_heads, T, n, d_head)."""
    v = read(layer, field)
    return (layer.mixing @ v.flatten(2)).view_as(v)


def ascend(local: LocalModel, sources: Sources, *, heads: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """What sources are at every layer, from the bottom up: in the stream before the layer, and in the one that its MLP
    reads; at last, twice, in the stream that ln_final reads."""
    n, T, pos = len(sources.pos), local.n_pos, sources.pos
    rows = torch.arange(n, device=pos.device)
    if heads:
        rows, pos = pos * n + rows, torch.arange(T, device=pos.device).repeat_interleave(n)

    def written(x: Tensor, place: int) -> Tensor:
        return x.index_add(0, rows, sources.writes[place]) if place in sources.writes else x

    x = written(local.trace.embed.new_zeros(len(pos), local.trace.embed.shape[1]), EMBED)
    for k, layer in enumerate(local.trace.layers):
        behind = x
        if heads and k not in local.attention.acts:  # else what heads bring ends in features
            behind = x + torch.einsum("htne,hed->tnd", mixed(layer, x), layer.weights.W_O).flatten(0, 1)
        behind = written(behind, behind_attention(k))
        read = x if layer.parallel else behind
        yield x, read
        x = written(behind + _skipped(local, k, read, pos), behind_mlp(k))
    yield x, x


def descend(local: LocalModel, reads: Reads, *, heads: bool) -> Iterator[Tensor]:
    """What targets read at attention's output of every layer, from the top down; where features stand in for it, only
    those features read it."""
    m, T, pos = len(reads.pos), local.n_pos, reads.pos
    rows = torch.arange(m, device=pos.device)
    if heads:
        rows, pos = pos * m + rows, torch.arange(T, device=pos.device).repeat_interleave(m)

    def joined(g: Tensor, k: int, *, at_attention: bool = False) -> Tensor:
        here = (reads.layer == k) & (reads.at_attention == at_attention)
        return g.index_add(0, rows[here], reads.vectors[here])

    g = joined(reads.vectors.new_zeros(len(pos), reads.vectors.shape[1]), local.n_layers)
    for k in reversed(range(local.n_layers)):
        parallel = local.trace.layers[k].parallel
        # A parallel block's MLP does not read what its attention writes.
        to_mlp = joined(_skip_pullback(local, k, g, pos), k)
        g = g if parallel else g + to_mlp
        if k in local.attention.acts:
            read = joined(torch.zeros_like(g), k, at_attention=True)
            yield read
            if heads:
                through = read.clone()
                local.heads[k].add_pullback(through.view(T, m, -1))
                g = g + through - read
        else:
            yield g
            if heads:
                local.heads[k].add_pullback(g.view(T, m, -1))
        g = g + to_mlp if parallel else g


def _skipped(local: LocalModel, k: int, x: Tensor, pos: Tensor) -> Tensor:
    W_skip = local.sets.skip(k) if k in local.sets else None
    if W_skip is None:
        return torch.zeros_like(x)
    return local.trace.layers[k].read_linear(local.sets.hook_in(k), x, pos) @ W_skip.T


def _skip_pullback(local: LocalModel, k: int, g: Tensor, pos: Tensor) -> Tensor:
    W_skip = local.sets.skip(k) if k in local.sets else None
    if W_skip is None:
        return torch.zeros_like(g)
    return local.trace.layers[k].read_pullback(local.sets.hook_in(k), g @ W_skip, pos)
