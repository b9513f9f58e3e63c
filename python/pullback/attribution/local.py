"""The local replacement model: one prompt in which every MLP is features, error and bias, and attention outputs are
where that is asked; all else frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from pullback._util.memory import keep_freed_memory
from pullback.attribution.at_attention import AttentionFeatures
from pullback.attribution.encoded import by_prompt, encoded
from pullback.attribution.heads import Heads
from pullback.attribution.layout import Layout
from pullback.attribution.stack import Stack
from pullback.lens import LayerTrace, Lens, Trace, must_be_attention_saes, must_be_transcoders, traces
from pullback.ops import SparseActivations
from pullback.transcoders import LayeredDictionary

Dictionaries: TypeAlias = tuple[LayeredDictionary, ...]
"""Of MLPs and, where there are some, of attention outputs: `dictionaries[attention]`."""


@dataclass(frozen=True)
class LocalModel:
    """mlp_out[l] = sum_i z_i W_dec_i[l] + errors[l] + mlp_bias[l] + W_skip x (+ zeroed[l]), exactly, at every position.

    Layers without a transcoder have no features and no bias: their whole MLP output is error. Attention writes what it
    reads of the stream through frozen patterns, plus attn_bias[l]; in layers that `attention` has, it writes its
    features, errors and attn_bias[l]. `sets` and those of `attention` hold the rows of this prompt's features;
    `dictionaries` are whole, for features that become active in other runs.
    """

    trace: Trace
    dictionaries: Dictionaries
    sets: LayeredDictionary
    acts: dict[int, SparseActivations]  # layer -> T rows; a feature that is active is its pre-activation
    errors: list[Tensor]  # L x (T, d)
    mlp_bias: dict[int, Tensor]  # layer -> (T, d): b_dec and the norm's bias through W_skip
    attn_bias: list[Tensor]  # L x (T, d): b_O, b_V and ln1's bias through the pattern; b_dec of autoencoders
    zeroed: list[Tensor] | None  # L x (T, d): what zero_positions took away
    precision: torch.dtype  # of the products of the linear engine; its sums are those of the trace
    attention: AttentionFeatures = field(default_factory=AttentionFeatures)

    @property
    def n_layers(self) -> int:
        return len(self.trace.layers)

    @property
    def n_pos(self) -> int:
        return self.trace.n_pos

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.active, self.n_pos, self.n_layers, self.trace.pos_embed is not None, self.mlp_bias)

    @property
    def active(self) -> dict[tuple[str, int], SparseActivations]:
        """Features by kind and layer, in the order of the layout."""
        at_mlps = {("features", i): self.acts[i] for i in sorted(self.acts)}
        return at_mlps | {("attn_features", i): acts for i, acts in sorted(self.attention.acts.items())}

    @property
    def heads(self) -> list[Heads]:
        return self.stack.heads

    @cached_property
    def stack(self) -> Stack:
        """This prompt alone, as the linear engine takes it."""
        return Stack([self])


def local_model(
    lens: Lens,
    sets: LayeredDictionary,
    tokens: Tensor,
    *,
    zero_positions: slice | None = None,
    strict: bool = True,
    precision: torch.dtype | None = None,
    attention_saes: LayeredDictionary | None = None,
) -> LocalModel:
    """Encode one prompt (T,) with every transcoder of the set and split each MLP output into its parts; and with
    autoencoders of attention outputs those.

    `zero_positions` removes features and errors at those positions, as circuit-tracer does for BOS.
    Raises ValueError for incompatible dictionaries, autoencoders in the place of transcoders and the other way round,
    or activations that are NaN or infinite.
    """
    sets = fitted_transcoders(lens, sets, strict=strict)
    saes = fitted_saes(lens, attention_saes, strict=strict)
    tokens = lens.to_tokens(tokens)[None]
    return local_models(lens, sets, tokens, zero_positions=zero_positions, precision=precision, attention_saes=saes)[0]


def fitted_transcoders(lens: Lens, sets: LayeredDictionary, *, strict: bool = True) -> LayeredDictionary:
    """The set as this model is computed, checked. Raises ValueError for incompatible transcoders and autoencoders."""
    sets = lens.fitted(sets, strict=strict)
    must_be_transcoders(sets, "attribution")
    return sets


def fitted_saes(lens: Lens, saes: LayeredDictionary | None, *, strict: bool = True) -> LayeredDictionary | None:
    """Autoencoders of attention outputs as this model is computed, checked. Raises ValueError for others."""
    if saes is None:
        return None
    saes = lens.fitted(saes, strict=strict)
    must_be_attention_saes(saes, "attention_saes")
    return saes


@torch.no_grad()
def local_models(
    lens: Lens,
    sets: LayeredDictionary,
    tokens: Tensor,
    *,
    zero_positions: slice | None = None,
    precision: torch.dtype | None = None,
    attention_saes: LayeredDictionary | None = None,
) -> list[LocalModel]:
    """`local_model` of Q prompts of one length (Q, T) in one forward pass, with dictionaries that fit."""
    keep_freed_memory()
    recorded = traces(lens, tokens)
    T = tokens.shape[1]
    keep = torch.ones(T, 1, dtype=lens.compute_dtype, device=lens.device)
    if zero_positions is not None:
        keep[zero_positions] = 0

    layers = [LayerTrace.stacked(prompts) for prompts in zip(*(t.layers for t in recorded), strict=True)]
    # Of activations, every prompt's T rows one after the other.
    inputs = {i: layers[i].read(sets.hook_in(i)) for i in sets.layers}
    acts = {i: encoded(sets, i, x, keep) for i, x in inputs.items()}
    dictionaries = (sets,) if attention_saes is None else (sets, attention_saes)
    sets = sets.holding(acts)  # every batch of targets reads the same decoder rows

    errors: list[Tensor] = []
    zeroed: list[Tensor] = []
    mlp_bias: dict[int, Tensor] = {}
    for i, layer in enumerate(layers):
        rest = layer.mlp_out
        if i in sets:
            bias = sets.b_dec(i)
            W_skip = sets.skip(i)
            if W_skip is not None:
                constant = layer.read_bias(sets.hook_in(i)) @ W_skip.T
                rest = rest - (inputs[i] @ W_skip.T - constant)
                bias = bias + constant
            mlp_bias[i] = bias.expand(T, -1)
            rest = rest - bias - sets.decode(acts, i).view_as(rest)
        errors.append(rest * keep)
        zeroed.append(rest * (1 - keep))
    attn_bias = [layer.attn_constant for layer in layers]
    attention = AttentionFeatures.of(attention_saes, layers, attn_bias, keep)

    precision = lens.compute_dtype if precision is None else precision

    acts_of = by_prompt(acts, len(tokens))
    attention_of = attention.of_prompts(len(tokens))

    def prompt(q: int) -> LocalModel:
        return LocalModel(
            trace=recorded[q],
            dictionaries=dictionaries,
            sets=sets,
            acts=acts_of[q],
            errors=[error[q] for error in errors],
            mlp_bias=mlp_bias,
            attn_bias=[attention.bias.get(i, bias)[q] for i, bias in enumerate(attn_bias)],
            zeroed=None if zero_positions is None else [rest[q] for rest in zeroed],
            precision=precision,
            attention=attention_of[q],
        )

    return [prompt(q) for q in range(len(tokens))]
