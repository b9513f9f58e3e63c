"""The local replacement model: one prompt in which every MLP is features, error and bias, all else frozen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pullback.attribution.heads import Heads
from pullback.lens import Lens, Trace, must_be_transcoders, traces
from pullback.ops import SparseActivations
from pullback.transcoders import BatchTopK, LayeredDictionary


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
    def stack(self) -> Stack:
        from pullback.attribution.stack import Stack

        return Stack([self])


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
    sets = fitted_transcoders(lens, sets, strict=strict)
    tokens = lens.to_tokens(tokens)[None]
    return local_models(lens, sets, tokens, zero_positions=zero_positions, precision=precision)[0]


def fitted_transcoders(lens: Lens, sets: LayeredDictionary, *, strict: bool = True) -> LayeredDictionary:
    """The set as this model is computed, checked. Raises ValueError for incompatible transcoders and autoencoders."""
    sets = lens.fitted(sets, strict=strict)
    must_be_transcoders(sets, "attribution")
    return sets


@torch.no_grad()
def local_models(
    lens: Lens,
    sets: LayeredDictionary,
    tokens: Tensor,
    *,
    zero_positions: slice | None = None,
    precision: torch.dtype | None = None,
) -> list[LocalModel]:
    """`local_model` of Q prompts of one length (Q, T) in one forward pass, with transcoders that fit."""
    recorded = traces(lens, tokens)
    Q, T = tokens.shape
    keep = torch.ones(T, 1, dtype=lens.compute_dtype, device=lens.device)
    if zero_positions is not None:
        keep[zero_positions] = 0

    # Every prompt's T rows, one after the other: (Q T, d).
    inputs = {i: torch.cat([t.layers[i].read(sets.hook_in(i)) for t in recorded]) for i in sets.layers}
    for i, x in inputs.items():
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"the activations at layer {i} are NaN or infinite: attribution has no meaning on this prompt"
            )
    acts = {i: _at_positions(_encoded(sets, i, x, Q), keep.repeat(Q, 1)) for i, x in inputs.items()}
    preactivations = {i: sets[i].preactivations(inputs[i], a.rows(), a.indices) for i, a in acts.items()}

    errors: list[Tensor] = []
    zeroed: list[Tensor] = []
    mlp_bias: dict[int, Tensor] = {}
    for i in range(lens.n_layers):
        rest = torch.cat([t.layers[i].mlp_out for t in recorded])
        if i in sets:
            bias = sets.b_dec(i).expand(T, -1)
            W_skip = sets.skip(i)
            if W_skip is not None:
                constant = recorded[0].layers[i].read_bias(sets.hook_in(i)) @ W_skip.T
                rest = rest - (inputs[i] @ W_skip.T - constant)
                bias = bias + constant
            mlp_bias[i] = bias
            rest = rest - bias.repeat(Q, 1) - sets.decode(acts, i)
        errors.append(rest * keep.repeat(Q, 1))
        zeroed.append(rest * (1 - keep).repeat(Q, 1))
    patterns = [torch.stack([t.layers[i].pattern for t in recorded]) for i in range(lens.n_layers)]
    attn_bias = [recorded[0].layers[i].weights.constant_output(pattern) for i, pattern in enumerate(patterns)]

    def prompt(q: int) -> LocalModel:
        rows = slice(q * T, (q + 1) * T)
        entries = {i: slice(int(a.indptr[rows.start]), int(a.indptr[rows.stop])) for i, a in acts.items()}
        return LocalModel(
            trace=recorded[q],
            sets=sets,
            acts={i: a[rows] for i, a in acts.items()},
            preactivations={i: h[entries[i]] for i, h in preactivations.items()},
            errors=[error[rows] for error in errors],
            mlp_bias=mlp_bias,
            attn_bias=[bias[q] for bias in attn_bias],
            zeroed=None if zero_positions is None else [rest[rows] for rest in zeroed],
            precision=lens.compute_dtype if precision is None else precision,
        )

    return [prompt(q) for q in range(Q)]


def _encoded(sets: LayeredDictionary, layer: int, x: Tensor, n_prompts: int) -> SparseActivations:
    """Features of every prompt's rows, (Q T, d). Where rows compete for activity, only those of one prompt do."""
    rule = sets[layer].activation
    if not isinstance(rule, BatchTopK) or rule.threshold is not None:
        return sets.encode(layer, x)
    parts = [sets.encode(layer, rows) for rows in x.chunk(n_prompts)]
    return SparseActivations.stacked(parts, sets[layer].d_sae, x)


def _at_positions(acts: SparseActivations, keep: Tensor) -> SparseActivations:
    """The same activations without those at positions where `keep` (T, 1) is 0."""
    return acts.where(keep[acts.rows(), 0] != 0)
