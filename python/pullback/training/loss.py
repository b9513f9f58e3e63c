"""The losses of a training step with their sparse gradients: reconstruction and AuxK."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.ops import (
    SparseActivations,
    SparseGradient,
    decode_csr,
    decode_residual,
    feature_order,
    sampled_dot,
    topk_encode,
    topk_select,
)
from pullback.training.share import WHOLE, Share
from pullback.transcoders import FeatureLayer

# Dead features encoded at a time: their rows are copied together, and a copy of all could be as large as the encoder.
DEAD_AT_ONCE = 4096


class Reconstruction(NamedTuple):
    """What the features of n rows make of a target, with all that the squared error asks of the decoder."""

    features: Tensor
    """Int32[Tensor, "nnz"]: the feature of every entry"""
    values: Tensor
    """Float[Tensor, "nnz"]: its activation; 0 in an empty slot"""
    rows: Tensor
    """Int32[Tensor, "nnz"]: its row of g"""
    dots: Tensor
    """Float[Tensor, "nnz"]: <g[row], W_dec[feature]>, the derivative of half the squared error by the activation"""
    g: Tensor
    """Float[Tensor, "m d_out"]: the derivative of half the squared error by what the entries of a row add up to. Its
    first n rows are the derivative by b_dec"""
    residual: Tensor
    """Float[Tensor, "n d_out"]: reconstruction minus target"""
    squares: Tensor
    """Float64[Tensor, "n"]: the squared error of every row"""
    whole: Tensor
    """Float64[Tensor, "n"]: that of the reconstruction by all features, where others are added to it"""

    @classmethod
    def of_slots(
        cls,
        values: Tensor,
        indices: Tensor,
        W_dec: Tensor,
        b_dec: Tensor | None,
        target: Tensor,
        relu: bool,
        share: Share = WHOLE,
    ) -> Reconstruction:
        """From k slots a row: values Float[Tensor, "n k"], indices Int32[Tensor, "n k"]."""
        if not share.whole:  # most slots are empty: what they held lost against features that are held elsewhere
            return cls.of_entries(SparseActivations.from_topk(values, indices, len(W_dec)), W_dec, b_dec, target, share)
        residual, dots, squares = decode_residual(values, indices, W_dec, b_dec, target, relu)
        rows = torch.arange(len(values), dtype=torch.int32, device=values.device)[:, None].expand_as(indices)
        # Of one row, an expanded column flattens to a view of stride 0.
        flat = indices.flatten(), values.flatten(), rows.flatten().contiguous(), dots.flatten()
        return cls(*flat, residual, residual, squares, squares)

    @classmethod
    def of_entries(
        cls, acts: SparseActivations, W_dec: Tensor, b_dec: Tensor | None, target: Tensor, share: Share = WHOLE
    ) -> Reconstruction:
        """From rows with any number of features. The entries are those of the features held here; residual and squares
        are of all."""
        residual = share.sum(decode_csr(acts, W_dec, share.once(b_dec))) - target
        dots = sampled_dot(residual, W_dec, acts.indptr, acts.indices)
        squares = residual.double().square().sum(1)
        return cls(acts.indices, acts.values, acts.rows().int(), dots, residual, residual, squares, squares)

    def loss(self, scale: Tensor) -> Tensor:
        """sum_n squares[n] / scale[n], for one scale or one of every row: Float64[Tensor, ""]."""
        return self.squares.sum() / scale if scale.ndim == 0 else (self.squares / scale).sum()


class Part(NamedTuple):
    """Entries of a sparse gradient; rows count within the part's own g (see `SparseGradient`)."""

    features: Tensor
    rows: Tensor
    dvalues: Tensor
    values: Tensor
    g: Tensor

    @classmethod
    def of(cls, made: Reconstruction, weight: Tensor) -> Part:
        """The gradient of sum_n weight[n] / 2 squares[n], for one weight or one of every row.

        The weight goes into the entries, not into the residuals, which are far larger.
        """
        weight = per_entry(weight.to(made.values.dtype), made.rows)
        return cls(made.features, made.rows, made.dots * weight, made.values * weight, made.g)


def per_entry(weight: Tensor, rows: Tensor) -> Tensor:
    """One weight, or that of the row (of n, again and again) that each entry stands in."""
    return weight if weight.ndim == 0 else weight[rows.long() % len(weight)]


def sparse_gradient(x: Tensor, parts: list[Part], n_features: int) -> SparseGradient:
    """All parts as one gradient; what a part's g lacks to a multiple of the rows of x is filled up with zeros. Parts
    that hold the same g share its rows."""

    def joined(tensors: list[Tensor]) -> Tensor:
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    rows, below, gs = [], 0, []
    places: dict[int, int] = {}
    for part in parts:
        if id(part.g) not in places:
            places[id(part.g)] = below
            missing = -len(part.g) % len(x)
            gs.append(torch.nn.functional.pad(part.g, (0, 0, 0, missing)) if missing else part.g)
            below += len(gs[-1])
        place = places[id(part.g)]
        rows.append(part.rows + place if place else part.rows)
    starts, order = feature_order(joined([part.features for part in parts]), n_features)
    return SparseGradient(
        starts,
        order,
        rows=joined(rows),
        dvalues=joined([part.dvalues for part in parts]),
        values=joined([part.values for part in parts]),
        x=x,
        g=joined(gs),
    )


def entry_features(gradient: SparseGradient) -> Tensor:
    """Int32[Tensor, "nnz"]: the feature of every entry, from where each feature's entries are."""
    ids = torch.arange(len(gradient.starts) - 1, dtype=torch.int32, device=gradient.order.device)
    sorted_ids = ids.repeat_interleave(gradient.starts.diff(), output_size=len(gradient.order))
    return torch.empty_like(gradient.order).index_copy_(0, gradient.order.long(), sorted_ids)


def auxk_reconstruction(
    transcoder: FeatureLayer,
    x: Tensor,
    residual: Tensor,
    dead: Tensor,
    k: int,
    share: Share = WHOLE,
    relu: bool = True,
) -> Reconstruction:
    """The top k of the dead features against what the living ones left over, without b_dec.

    Args:
        x: Float[Tensor, "n d_in"].
        residual: Float[Tensor, "n d_out"], reconstruction minus target.
        dead: Int64[Tensor, "n_dead"], of the features held here.
        k: at most the number of dead features in all.
        relu: without it pre-activations count as they are: those of a feature that a threshold keeps dead are below it,
            and nothing would be left of them.
    """
    values, ids = encode_rows(transcoder, x, dead, min(k, len(dead)), relu)
    values = share.best(values, k, relu=relu)
    return Reconstruction.of_slots(values, ids, transcoder.W_dec, None, -residual, relu=relu, share=share)


def encode_rows(transcoder: FeatureLayer, x: Tensor, features: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
    """The k largest of some features Int64[Tensor, "m"], values Float[Tensor, "n k"] and ids Int32[Tensor, "n k"]: the
    top k of the top k of every chunk."""
    chunks = []
    # A GPU has more memory to spare than time for many small kernels.
    at_once = DEAD_AT_ONCE if x.is_cpu else 8 * DEAD_AT_ONCE
    for start in range(0, len(features), at_once):
        ids = features[start : start + at_once]
        values, places = topk_encode(x, transcoder.W_enc[ids], transcoder.b_enc[ids], min(k, len(ids)), relu=relu)
        chunks.append((values, places + start))
    if not chunks:
        return x.new_empty(len(x), 0), features.new_empty(len(x), 0, dtype=torch.int32)
    values, places = (torch.cat(parts, dim=1) for parts in zip(*chunks, strict=True))
    if len(chunks) > 1:
        values, best = topk_select(values, k, relu)
        places = places.gather(1, best.long())
    return values, features[places.long()].int()
