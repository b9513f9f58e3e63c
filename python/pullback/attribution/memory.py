"""What a graph takes: bytes of everything that is there while it is made, and how many edges it will have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback._util.amounts import amount
from pullback.attribution.batches import targets_at_once
from pullback.attribution.linear.sweep import bytes_per_target
from pullback.attribution.local import LocalModel, local_model
from pullback.lens import Lens, as_lens
from pullback.transcoders import FeatureLayer, HeldRows, LayeredDictionary

# Of an edge: 4 in the rows while they are gathered, 8 in the graph, and what scores take.
BYTES_PER_EDGE = 16


class MemoryEstimate(NamedTuple):
    """Bytes, about, and a number of edges."""

    model: int
    """parameters of the model that lie in memory"""
    dictionaries: int
    """weights of the dictionaries that lie in memory"""
    in_files: int
    """weights that stay in files: the page cache holds them as far as there is room"""
    held: int
    """decoder rows that were read from files for this prompt"""
    prompt: int
    """activations, patterns, and what the frozen map is made of"""
    batch: int
    """gradients and edges of targets that are pulled back together"""
    n_edges: int
    """that the graph will have"""
    edges: int
    """rows of edges, and the graph made of them"""

    @property
    def total(self) -> int:
        """In memory at once; what is in files does not count."""
        return self.model + self.dictionaries + self.held + self.prompt + self.batch + self.edges

    def __str__(self) -> str:
        parts = [
            ("model", self.model),
            ("dictionaries", self.dictionaries),
            ("dictionaries in files (not counted)", self.in_files),
            ("their rows for this prompt", self.held),
            ("activations and frozen map", self.prompt),
            ("batch of targets", self.batch),
            (f"some {self.n_edges:,} edges", self.edges),
        ]
        lines = [f"{what}: {amount(size, 'B')}" for what, size in parts if size]
        return f"memory, about {amount(self.total, 'B')}: {'; '.join(lines)}"


def memory_estimate(
    model: Any,
    sets: LayeredDictionary,
    prompt: str | Sequence[int] | Tensor,
    *,
    batch_size: int = 512,
    max_feature_nodes: int | None = None,
    zero_positions: slice | None = None,
) -> MemoryEstimate:
    """What `attribute` with these arguments would take, by the linear engine. Runs the prompt's forward pass and
    encoders, which takes a small part of a graph's time, and no target. Raises ValueError as `attribute` does."""
    lens = as_lens(model)
    with torch.no_grad():
        local = local_model(lens, sets, lens.to_tokens(prompt), zero_positions=zero_positions)
    return estimated(lens, local, batch_size, max_feature_nodes)


def estimated(lens: Lens, local: LocalModel, batch_size: int, max_feature_nodes: int | None) -> MemoryEstimate:
    """Of one prompt's local model; its dictionary is the one that was given, or a copy where dtypes differ."""
    in_memory, in_files, held = _dictionary_bytes(local.sets)
    n_edges = expected_edges(local, max_feature_nodes)
    return MemoryEstimate(
        model=_bytes(lens.model.parameters()),
        dictionaries=in_memory,
        in_files=in_files,
        held=held,
        prompt=_bytes(_of_prompt(lens, local)),
        batch=targets_at_once(local, batch_size) * bytes_per_target(local),
        n_edges=n_edges,
        edges=BYTES_PER_EDGE * n_edges,
    )


def expected_edges(local: LocalModel, max_feature_nodes: int | None = None) -> int:
    """Edges if no contribution is exactly zero. Of some features only, as many as they have on average."""
    ones = torch.ones(local.n_pos, dtype=torch.long)
    at = ones * (1 if local.trace.pos_embed is None else 2)  # sources at each position, of the layers so far
    reached = at  # those in the stream that the block reads: all before the position came through attention
    total = targets = 0
    for layer, block in enumerate(local.trace.layers):
        mixed = at.cumsum(0)
        seen = reached if block.parallel else mixed + 1  # and the bias of attention
        if layer in local.attention.acts:  # its features and errors stand in for what came through it
            counts = local.attention.acts[layer].indptr.diff().cpu()
            total += int((counts * (mixed + 1)).sum())
            targets += int(counts.sum())
            at, mixed = at + counts + 1, reached + counts + 1
            seen = reached if block.parallel else mixed + 1
        written = ones * (3 if layer in local.mlp_bias else 2)  # that bias, error, the MLP's bias
        if layer in local.acts:
            counts = local.acts[layer].indptr.diff().cpu()
            total += int((counts * (seen + 1)).sum())  # and the target's own leaf
            targets += int(counts.sum())
            written = written + counts
        at, reached = at + written, mixed + written
    if max_feature_nodes is not None and targets:
        total = round(total * min(1.0, max_feature_nodes / targets))
    return total + int(reached[-1]) + 1


def _of_prompt(lens: Lens, local: LocalModel) -> Iterable[Tensor]:
    """What is kept of one prompt; what is the model's own is not counted again."""
    t = local.trace
    own = [t.embed, t.pos_embed, t.logits, t.W_U, t.b_U]
    own += [*local.errors, *local.attn_bias, *local.mlp_bias.values(), *(local.zeroed or ())]
    for layer, heads in zip(t.layers, local.heads, strict=True):
        w = layer.weights
        own += [layer.x_pre, layer.pattern, layer.attn_out, layer.mlp_out, w.W_V, w.W_O]
        own += [heads.from_v, heads.to_z, heads.mixing]
    own += [*local.attention.errors.values(), *local.attention.zeroed.values()]
    for acts in local.active.values():
        own += [acts.indptr, acts.indices, acts.values]
    models = {p.untyped_storage().data_ptr() for p in lens.model.parameters()}
    return [one for one in own if one is not None and one.untyped_storage().data_ptr() not in models]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of what lies in memory, each once."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_meta}
    return sum(found.values())


def _dictionary_bytes(sets: LayeredDictionary) -> tuple[int, int, int]:
    """In memory, in files, and of those the rows that are held."""
    layers: list[FeatureLayer] = list(sets.values())
    rows = [getattr(features, name) for features in layers for name in ("W_enc", "W_dec")]
    elsewhere = [weight for weight in rows if not isinstance(weight, Tensor)]
    return (
        _bytes(p for features in layers for p in [*features.parameters(), *features.buffers()]),
        sum(weight.shape.numel() * weight.dtype.itemsize for weight in elsewhere),
        _bytes(weight.rows for weight in elsewhere if isinstance(weight, HeldRows)),
    )
