"""Where sources stand in a row of edges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from pullback.lens.depth import at_attention, at_mlp
from pullback.ops import SparseActivations

WRITTEN: dict[str, Callable[[int], int]] = {
    "features": at_mlp,
    "attn_features": at_attention,
    "errors": at_mlp,
    "attn_errors": at_attention,
    "mlp_bias": at_mlp,
    "attn_bias": at_attention,
}
"""The depth at which each kind of source writes, by layer, in the order of a row."""


class Layout:
    """Where sources stand: embeddings, positions, features (of MLPs by layer, position, id; of attention outputs by the
    same), errors of both, MLP and attention biases.

    Args:
        acts: features by kind ("features", "attn_features") and layer, in this order, of as many rows.
        n_rows: the prompt's positions.
        has_positions: whether a vector of its own is added at every position.
        biased: layers whose MLP has a bias leaf.
    """

    def __init__(
        self,
        acts: Mapping[tuple[str, int], SparseActivations],
        n_rows: int,
        n_layers: int,
        has_positions: bool,
        biased: Iterable[int],
    ) -> None:
        self.embedding = slice(0, n_rows)
        end = n_rows
        self.position = slice(end, end + (n_rows if has_positions else 0))
        end = self.position.stop
        self.features: dict[int, slice] = {}
        self.attn_features: dict[int, slice] = {}
        for (kind, layer), active in acts.items():
            self.of_kind(kind)[layer] = slice(end, end + active.nnz)
            end += active.nnz
        self.all_features = slice(self.position.stop, end)

        def per_position(layers: list[int]) -> dict[int, slice]:
            nonlocal end
            spans = {layer: slice(end + n * n_rows, end + (n + 1) * n_rows) for n, layer in enumerate(layers)}
            end += len(layers) * n_rows
            return spans

        self.errors = per_position(list(range(n_layers)))
        self.attn_errors = per_position(list(self.attn_features))
        self.mlp_bias = per_position(sorted(biased))
        self.attn_bias = per_position(list(range(n_layers)))
        self.n_sources = end

    def spans(self, depth: int) -> dict[tuple[str, int], slice]:
        """Sources that write to the stream below a depth (`lens.depth`), in their order, by kind and layer."""
        found = {("embedding", -1): self.embedding, ("position", -1): self.position}
        for kind, written in WRITTEN.items():
            found |= {(kind, layer): span for layer, span in self.of_kind(kind).items() if written(layer) < depth}
        return found

    def of_kind(self, kind: str) -> dict[int, slice]:
        """Sources of one kind of `WRITTEN`, by layer."""
        return getattr(self, kind)

    def counts_in_scores(self) -> Tensor:
        """Mask of the sources that circuit-tracer knows, (n_sources): no positions, no biases."""
        counts = torch.ones(self.n_sources, dtype=torch.bool)
        for span in (self.position, *self.mlp_bias.values(), *self.attn_bias.values()):
            counts[span] = False
        return counts
