"""What paths lead to: a feature, a logit, a difference of logits, a direction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution import targets as at
from pullback.attribution.asked import Asked, DirectionTarget, as_targets
from pullback.attribution.local import LocalModel
from pullback.attribution.names import node_id
from pullback.attribution.paths.nodes import PathNodes
from pullback.attribution.paths.norms import FrozenNorms
from pullback.attribution.paths.readings import Readings
from pullback.attribution.paths.steps import mlp_reads_below
from pullback.attribution.reader import Entry, Reader
from pullback.attribution.targets import feature_batch
from pullback.lens import Lens
from pullback.lens.depth import at_attention, at_mlp, before_block

OUTPUTS = {"hook_attn_out": at_attention, "hook_mlp_out": at_mlp}


@dataclass(frozen=True)
class Root:
    """value: (1), what its sources sum to. activation: (1), of a feature; a logit's probability; 1 of a direction."""

    nodes: PathNodes
    name: str
    label: str
    value: Tensor
    activation: Tensor
    reading: Readings


def root_of(lens: Lens, local: LocalModel, norms: FrozenNorms, asked: Asked, position: int) -> Root:
    """Read one target, as `attribute` takes them; a direction may also be read at blocks.{l}.hook_mlp_out and
    hook_attn_out, where it is of what that one place writes.

    Raises ValueError for several targets, or one that this prompt does not have.
    """
    targets = [] if asked is None else as_targets(asked)
    if len(targets) != 1:
        raise ValueError(f"paths: give one root: a token, feature, difference or direction; got {asked!r}")
    target = targets[0]
    if isinstance(target, DirectionTarget) and target.site.rpartition(".")[2] in OUTPUTS:
        return _of_output(lens, local, target, position)
    reader = Reader(lens, local, position)
    found = reader.read(target)
    if not isinstance(found, Entry):
        return _active_feature(local, norms, found)
    layer, pos = int(found.target.layer), found.target.pos
    vectors, own = norms.root(found.target)
    below = mlp_reads_below(local, layer) if _reads_mlp_input(found.target) else before_block(layer)
    return _root(
        (found.kind, layer, found.feature, int(pos)),
        found.label,
        found.value[None],
        found.activation[None],
        Readings.of_the_stream(vectors, pos, below, own),
    )


def _active_feature(local: LocalModel, norms: FrozenNorms, place: int) -> Root:
    target = feature_batch(local.stack, torch.tensor([place], device=local.trace.tokens.device))
    vectors, own = norms.root(target)
    layer, pos = int(target.layer), int(target.pos)
    at_entry = place - local.layout.features[layer].start + local.layout.all_features.start
    acts = local.acts[layer]
    value = acts.values[at_entry][None]
    return _root(
        (k.FEATURE, layer, int(acts.indices[at_entry]), pos),
        "",
        value,
        value,
        Readings.of_the_stream(vectors, target.pos, mlp_reads_below(local, layer), own),
    )


def _of_output(lens: Lens, local: LocalModel, target: DirectionTarget, position: int) -> Root:
    """A direction in what one MLP or one attention writes."""
    block, _, hook = target.site.rpartition(".")
    layer = block.removeprefix("blocks.")
    if not layer.isdecimal() or int(layer) >= local.n_layers:
        raise ValueError(f"paths: there is no '{target.site}'; layers are 0..{local.n_layers - 1}")
    # The reader checks vector and position; it knows the stream only, so the site is another.
    checked = DirectionTarget(target.vector, f"{block}.hook_resid_pre", target.position, label=target.label)
    entry = Reader(lens, local, position).read(checked)
    assert isinstance(entry, Entry)
    trace, depth = local.trace.layers[int(layer)], OUTPUTS[hook](int(layer))
    written = trace.mlp_out if hook == "hook_mlp_out" else trace.attn_out
    vectors, pos = entry.target.vectors, entry.target.pos
    value = torch.linalg.vecdot(vectors, written[pos])
    return _root(
        (k.DIRECTION, int(layer), 0, int(pos)),
        target.label or f"direction at {target.site}",
        value,
        torch.ones_like(value),
        Readings(vectors, pos, torch.full_like(pos, depth), torch.full_like(pos, depth + 1), entry.target.own),
    )


def _reads_mlp_input(target: at.Targets) -> bool:
    return int(target.site) not in (at.BEFORE_BLOCK, at.FINAL)


def _root(place: tuple[int, int, int, int], label: str, value: Tensor, activation: Tensor, reading: Readings) -> Root:
    kind, layer, index, pos = place
    nodes = PathNodes(*(torch.tensor([x], device=value.device) for x in (kind, layer, index, pos)))
    return Root(nodes, node_id(kind, layer, pos, index), label, value, activation, reading)
