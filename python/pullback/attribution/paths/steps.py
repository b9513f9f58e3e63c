"""One step of a path: from a reading vector, through a source, to the vector that reads what the source reads."""

from __future__ import annotations

import torch

from pullback.attribution import nodes as k
from pullback.attribution.local import LocalModel
from pullback.attribution.paths.nodes import HEAD, SKIP
from pullback.attribution.paths.norms import FrozenNorms
from pullback.attribution.paths.readings import Readings
from pullback.attribution.paths.sources import Candidates, through_skip
from pullback.lens.depth import at_mlp, before_block


def readings_of(
    local: LocalModel, norms: FrozenNorms, before: Readings, steps: Candidates, *, past_first_attention: bool
) -> Readings:
    """The readings of n steps from `before`: a feature's encoder times the step's coefficient, a head's frozen W_V W_O
    and pattern, a skip connection. Everything else ends there, and so does the first layer's attention unless
    `past_first_attention`."""
    made = Readings.of_nothing(before.vectors.new_zeros(len(steps), before.vectors.shape[1]), steps.pos)
    columns = made.columns()
    for kind, through in ((k.FEATURE, _feature), (HEAD, _head), (SKIP, _skip)):
        of_kind = steps.kind == kind
        for layer in steps.layer[of_kind].unique().tolist():
            which = (of_kind & (steps.layer == layer)).nonzero()[:, 0]
            found = through(local, norms, layer, before[steps.owner[which]], steps[which])
            if kind == HEAD and layer == 0 and not past_first_attention:
                found = Readings.of_nothing(found.vectors, found.pos)
            for column, part in zip(columns, found.columns(), strict=True):
                column[which] = part
    return made


def _feature(local: LocalModel, norms: FrozenNorms, layer: int, _before: Readings, steps: Candidates) -> Readings:
    coefficient = steps.contribution / steps.activation
    rows = local.sets.encoder_rows(layer, steps.index).to(coefficient)
    vectors = norms.before_mlp(layer, coefficient[:, None] * rows, steps.pos)
    own = coefficient * norms.own(layer, steps.index, rows)
    return Readings.of_the_stream(vectors, steps.pos, mlp_reads_below(local, layer), own)


def _head(_local: LocalModel, norms: FrozenNorms, layer: int, before: Readings, steps: Candidates) -> Readings:
    heads = norms.heads(layer)
    at_z = heads.at_z(before.vectors)[torch.arange(len(steps), device=steps.index.device), steps.index]
    weight = heads.mixing[0][steps.index, before.pos, steps.pos]
    taken = heads.at_stream(weight[:, None] * at_z, steps.index).to(before.vectors.dtype)
    return Readings.of_the_stream(norms.before_attention(layer, taken, steps.pos), steps.pos, before_block(layer))


def _skip(local: LocalModel, norms: FrozenNorms, layer: int, before: Readings, steps: Candidates) -> Readings:
    vectors = through_skip(local, norms, layer, before)
    return Readings.of_the_stream(vectors, steps.pos, mlp_reads_below(local, layer))


def mlp_reads_below(local: LocalModel, layer: int) -> int:
    """The depth below which this layer's MLP reads: in a parallel block it does not see its own attention."""
    return before_block(layer) if local.trace.layers[layer].parallel else at_mlp(layer)
