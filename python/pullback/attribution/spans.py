"""Which sources a row of edges lists, and where they stand."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from pullback.attribution.layout import Layout
from pullback.lens.depth import n_depths
from pullback.ops import SparseActivations
from pullback.ops.edges import SpanShapes


class Spans:
    """The spans of every prompt's own layout. A row lists those that can matter to its target: of the first positions,
    written below its depth, and not 0 everywhere.

    Args:
        layouts, acts: of Q prompts of T positions.
        silent: kinds and layers of leaves that are 0 everywhere.
    """

    def __init__(
        self,
        layouts: Sequence[Layout],
        acts: Sequence[Mapping[tuple[str, int], SparseActivations]],
        n_pos: int,
        n_layers: int,
        silent: Collection[tuple[str, int]],
    ) -> None:
        depths = n_depths(n_layers)
        self.n_prompts = len(layouts)
        self.names = list(layouts[0].spans(depths))
        self.starts = torch.tensor([[span.start for span in own.spans(depths).values()] for own in layouts])
        one_each = {True: torch.arange(n_pos + 1), False: torch.zeros(n_pos + 1, dtype=torch.long)}
        ends = [
            torch.stack([one[name].indptr.cpu() for one in acts])
            if name in acts[0]
            else one_each[span.stop > span.start].expand(self.n_prompts, -1)
            for name, span in layouts[0].spans(depths).items()
        ]
        self._ends = torch.stack(ends, 1)  # (Q, S, T + 1), sources at the first positions
        self.sizes = self._ends[..., -1]  # (Q, S)
        below = [layouts[0].spans(depth).keys() - silent for depth in range(depths + 1)]
        self._listed = torch.tensor([[name in names for name in self.names] for names in below])

    def lengths(self, positions: Tensor, depths: Tensor) -> Tensor:
        """Of every span in rows of K kinds, each of so many positions at a depth, (K, Q, S)."""
        return self._ends[:, :, positions].permute(2, 0, 1) * self._listed[depths][:, None]

    def shapes(self, lengths: Tensor, columns: Tensor) -> SpanShapes:
        """A shape for each kind and prompt, k Q + q, whose spans are taken from these columns, (K, Q, S)."""
        listed = lengths > 0
        spans = torch.stack([columns, self.starts.expand_as(lengths), lengths], -1)
        per_shape = listed.flatten(0, 1).sum(1)
        return SpanShapes(torch.nn.functional.pad(per_shape.cumsum(0), (1, 0)), spans[listed])
