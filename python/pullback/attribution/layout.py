"""Where sources stand in a row of edges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pullback.ops import SparseActivations


class Layout:
    """Where sources stand: embeddings, positions, features (layer, position, id), errors, MLP and attention biases.

    Args:
        acts: features of each layer, of as many rows.
        n_rows: the prompt's positions.
        has_positions: whether a vector of its own is added at every position.
        biased: layers whose MLP has a bias leaf.
    """

    def __init__(
        self,
        acts: Mapping[int, SparseActivations],
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
        for layer in sorted(acts):
            self.features[layer] = slice(end, end + acts[layer].nnz)
            end = self.features[layer].stop
        self.all_features = slice(self.position.stop, end)

        def per_position(layers: list[int]) -> dict[int, slice]:
            nonlocal end
            spans = {layer: slice(end + n * n_rows, end + (n + 1) * n_rows) for n, layer in enumerate(layers)}
            end += len(layers) * n_rows
            return spans

        self.errors = per_position(list(range(n_layers)))
        self.mlp_bias = per_position(sorted(biased))
        self.attn_bias = per_position(list(range(n_layers)))
        self.n_sources = end

    def spans(self, depth: int) -> dict[tuple[str, int], slice]:
        """Sources that write to the stream below a depth (`Targets.depth`), in their order, by kind and layer. Block
        l's attention writes at 2 l, its MLP at 2 l + 1."""
        found = {("embedding", -1): self.embedding, ("position", -1): self.position}
        for kind, above in (("features", 1), ("errors", 1), ("mlp_bias", 1), ("attn_bias", 0)):
            spans: dict[int, slice] = getattr(self, kind)
            found |= {(kind, layer): span for layer, span in spans.items() if 2 * layer + above < depth}
        return found

    def counts_in_scores(self) -> Tensor:
        """Mask of the sources that circuit-tracer knows, (n_sources): no positions, no biases."""
        counts = torch.ones(self.n_sources, dtype=torch.bool)
        for span in (self.position, *self.mlp_bias.values(), *self.attn_bias.values()):
            counts[span] = False
        return counts
