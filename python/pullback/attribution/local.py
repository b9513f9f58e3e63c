"""The local replacement model: one prompt in which every MLP is features, error and bias, all else frozen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pullback.attribution.heads import Heads
from pullback.lens import Lens, Trace, must_be_transcoders, trace
from pullback.ops import SparseActivations
from pullback.transcoders import LayeredDictionary


@dataclass(frozen=True)
class LocalModel:
    """mlp_out[l] = sum_i z_i W_dec_i[l] + errors[l] + mlp_bias[l] + W_skip x (+ zeroed[l]), exactly, at every position.

    Layers without a transcoder have no features and no bias: their whole MLP output is error.
    """

    trace: Trace
    sets: LayeredDictionary
    acts: dict[int, SparseActivations]  # layer -> T rows
    preactivations: dict[int, Tensor]  # layer -> (nnz), before the activation function
    errors: list[Tensor]  # L x (T, d)
    mlp_bias: dict[int, Tensor]  # layer -> (T, d): b_dec and the norm's bias through W_skip
    attn_bias: list[Tensor]  # L x (T, d): b_O, b_V and ln1's bias through the pattern
    zeroed: list[Tensor] | None  # L x (T, d): what zero_positions took away
    precision: torch.dtype  # of the products of the linear engine; its sums are those of the trace

    @property
    def n_layers(self) -> int:
        return len(self.trace.layers)

    @property
    def n_pos(self) -> int:
        return self.trace.n_pos

    @cached_property
    def layout(self) -> Layout:
        return Layout(self)

    @cached_property
    def heads(self) -> list[Heads]:
        return [Heads(layer, self.precision) for layer in self.trace.layers]


class Layout:
    """Where sources stand: embeddings, positions, features (layer, position, id), errors, MLP and attention biases."""

    def __init__(self, local: LocalModel) -> None:
        T, L = local.n_pos, local.n_layers
        self.embedding = slice(0, T)
        end = T
        self.position = slice(end, end + (0 if local.trace.pos_embed is None else T))
        end = self.position.stop
        self.features: dict[int, slice] = {}
        for layer in sorted(local.acts):
            self.features[layer] = slice(end, end + local.acts[layer].nnz)
            end = self.features[layer].stop
        self.all_features = slice(self.position.stop, end)

        def per_position(layers: list[int]) -> dict[int, slice]:
            nonlocal end
            spans = {layer: slice(end + n * T, end + (n + 1) * T) for n, layer in enumerate(layers)}
            end += len(layers) * T
            return spans

        self.errors = per_position(list(range(L)))
        self.mlp_bias = per_position(sorted(local.mlp_bias))
        self.attn_bias = per_position(list(range(L)))
        self.n_sources = end

    def counts_in_scores(self) -> Tensor:
        """Mask of the sources that circuit-tracer knows, (n_sources): no positions, no biases."""
        counts = torch.ones(self.n_sources, dtype=torch.bool)
        for span in (self.position, *self.mlp_bias.values(), *self.attn_bias.values()):
            counts[span] = False
        return counts


def local_model(
    lens: Lens,
    sets: LayeredDictionary,
    tokens: Tensor,
    *,
    zero_positions: slice | None = None,
    strict: bool = True,
    precision: torch.dtype | None = None,
) -> LocalModel:
    """Encode one prompt (T,) with every transcoder of the set and split each MLP output into its parts.

    `zero_positions` removes features and errors at those positions, as circuit-tracer does for BOS.
    Raises ValueError for incompatible transcoders, autoencoders, or activations that are NaN or infinite.
    """
    sets = lens.fitted(sets, strict=strict)
    must_be_transcoders(sets, "attribution")
    t = trace(lens, tokens)
    keep = torch.ones(t.n_pos, 1, dtype=lens.compute_dtype, device=lens.device)
    if zero_positions is not None:
        keep[zero_positions] = 0

    inputs = {i: t.layers[i].read(sets.hook_in(i)) for i in sets.layers}
    for i, x in inputs.items():
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"the activations at layer {i} are NaN or infinite: attribution has no meaning on this prompt"
            )
    acts = {i: _at_positions(sets.encode(i, x), keep) for i, x in inputs.items()}
    sets = sets.holding(acts)  # every batch of targets reads the same decoder rows
    preactivations = {i: sets[i].preactivations(inputs[i], a.rows(), a.indices) for i, a in acts.items()}

    errors: list[Tensor] = []
    zeroed: list[Tensor] = []
    mlp_bias: dict[int, Tensor] = {}
    for i, layer in enumerate(t.layers):
        rest = layer.mlp_out
        if i in sets:
            bias = sets.b_dec(i).expand_as(rest)
            linear = torch.zeros_like(rest)
            W_skip = sets.skip(i)
            if W_skip is not None:
                constant = layer.read_bias(sets.hook_in(i)) @ W_skip.T
                linear = inputs[i] @ W_skip.T - constant
                bias = bias + constant
            mlp_bias[i] = bias
            rest = rest - bias - linear - sets.decode(acts, i)
        errors.append(rest * keep)
        zeroed.append(rest * (1 - keep))
    return LocalModel(
        trace=t,
        sets=sets,
        acts=acts,
        preactivations=preactivations,
        errors=errors,
        mlp_bias=mlp_bias,
        attn_bias=[layer.attn_constant for layer in t.layers],
        zeroed=None if zero_positions is None else zeroed,
        precision=lens.compute_dtype if precision is None else precision,
    )


def _at_positions(acts: SparseActivations, keep: Tensor) -> SparseActivations:
    """The same activations without those at positions where `keep` (T, 1) is 0."""
    return acts.where(keep[acts.rows(), 0] != 0)
