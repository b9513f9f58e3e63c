"""Chains of attention heads between a source and what reads it (METHODS 1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import Tensor

from pullback.attribution.pullbacks.norms import NormRule
from pullback.attribution.pullbacks.reads import Reads
from pullback.attribution.weights.wiring import Head, Wiring, heads_of
from pullback.lens import Lens, Trace
from pullback.lens.depth import at_mlp, before_block, block_of
from pullback.lens.weights import NO_NORM


def as_chain(lens: Lens, heads: Sequence[Any]) -> list[Head]:
    """One head (layer, head), or several in the order in which the stream passes them. Raises ValueError for heads that
    the model does not have, and for a chain that does not go upwards."""
    one = len(heads) == 2 and all(isinstance(number, Integral) for number in heads)
    chain = heads_of(lens, [heads] if one else heads, "pullback")
    if any(below[0] >= above[0] for below, above in zip(chain, chain[1:], strict=False)):
        raise ValueError(
            f"pullback: heads {chain} form no chain: each reads what the one before it wrote, so layers must ascend"
        )
    return chain


def written_by(lens: Lens, head: Head) -> int:
    """The depth (`lens.depth`) from which on the stream holds what a head writes."""
    return before_block(head[0] + 1) if lens.parallel else at_mlp(head[0])


def entrance(wiring: Wiring, depth: int, chain: Sequence[Head]) -> int:
    """The depth at which a source is read: by the first head, or by the target, which is read at `depth`. Raises
    ValueError for a chain that does not end below the target."""
    if chain and written_by(wiring.lens, chain[-1]) > depth:
        raise ValueError(f"pullback: head {chain[-1]} writes above what the target reads; give heads of lower layers")
    return before_block(chain[0][0]) if chain else depth


def direction(wiring: Wiring, read: Reads, chain: Sequence[Head], rule: NormRule) -> Tensor:
    """The targets' vectors as they read the stream at the chain's entrance, whatever the input, (r, d)."""
    g = rule.direction(read.norm, read.vectors)
    for head in reversed(chain):
        g = rule.direction(wiring.layer(head[0]).ln1, wiring.ov_transpose(head, g))
    return g


def followed(
    wiring: Wiring, read: Reads, positions: Tensor, chain: Sequence[Head], rule: NormRule, trace: Trace
) -> tuple[Tensor, Tensor]:
    """`direction`, and what the prompt makes of it at every position of the entrance, Float (r, T): the patterns of the
    heads, from the targets' positions (r) down, times the factors of the norms on the way.

    What a target reads through the chain is sum_s coefficient[s] <direction, x[s]>, x the stream at the entrance.
    """
    v, T = read.vectors, trace.n_pos
    coefficients = rule.factor(read.norm, v, trace.stream(read.depth), read_scale(trace, read)).expand(len(v), T)
    own = positions[:, None] == positions.new_tensor(range(T))
    coefficients = coefficients * own
    g = rule.direction(read.norm, v)
    for layer, head in reversed(chain):
        at, ln1 = trace.layers[layer], trace.layers[layer].weights.ln1
        g = wiring.ov_transpose((layer, head), g)
        coefficients = (coefficients @ at.mixing[head]) * rule.factor(ln1, g, at.x_pre, at.ln1_scale)
        g = rule.direction(ln1, g)
    return g, coefficients


def read_scale(trace: Trace, read: Reads) -> Tensor:
    """The denominator of the norm between the stream and the targets, (T, 1)."""
    if read.norm.kind == NO_NORM:
        return trace.final_scale.new_ones(trace.n_pos, 1)
    layer = block_of(read.depth)
    return trace.layers[layer].ln2_scale if read.depth == at_mlp(layer) else trace.final_scale
