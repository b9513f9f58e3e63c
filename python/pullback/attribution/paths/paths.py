"""`Paths`: what a search found, as a tree of which every node ends one path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.attribution.local import LocalModel
from pullback.attribution.nodes import FEATURE
from pullback.attribution.paths.filters import FeatureFilter, Filters, as_filters
from pullback.attribution.paths.norms import FrozenNorms
from pullback.attribution.paths.search import Level, SearchSettings

if TYPE_CHECKING:
    import pandas as pd

    from pullback.attribution.paths.graph import PathGraph


@dataclass(frozen=True)
class Path:
    """From the root, first, to where the path has come; `contributions` of each node to the root. `tokens` are those
    where nodes stand, and what a root is of that is no feature."""

    nodes: tuple[str, ...]
    contributions: tuple[float, ...]
    tokens: tuple[str, ...]

    @property
    def contribution(self) -> float:
        return self.contributions[-1]

    def __len__(self) -> int:
        return len(self.nodes)

    def __str__(self) -> str:
        steps = (f"{node} {token!r}" for node, token in zip(self.nodes, self.tokens, strict=True))
        return f"{self.contribution:+.3g}: {' <- '.join(steps)}"


@dataclass(frozen=True, eq=False)
class Paths:
    """Computational paths to one root, of every length up to the search's, each list from the largest contribution on.

    Attributes:
        levels: the tree, a level for each length.
        kept: which of them are paths of this object, (n) bool a level; all until `where`.
        meta: prompt, tokens, str_tokens, model_name, root, root_label, and the search's settings.
    """

    levels: list[Level]
    kept: list[Tensor]
    settings: SearchSettings
    meta: dict[str, Any]
    local: LocalModel
    norms: FrozenNorms

    def __len__(self) -> int:
        return sum(int(kept.sum()) for kept in self.kept)

    def __repr__(self) -> str:
        counts = ", ".join(f"{int(kept.sum())} of {n + 1}" for n, kept in enumerate(self.kept))
        return f"Paths(root={self.meta['root']}, by number of nodes: {counts})"

    def __iter__(self) -> Iterator[Path]:
        for length in range(1, len(self.levels) + 1):
            yield from self.of_length(length)

    @property
    def root_value(self) -> float:
        return float(self.levels[0].contribution)

    def of_length(self, length: int) -> list[Path]:
        """Those of so many nodes, the root counted."""
        if not 1 <= length <= len(self.levels):
            return []
        return [self._path(length - 1, place) for place in self.kept[length - 1].nonzero()[:, 0].tolist()]

    def where(
        self,
        infix: Filters | str | Sequence[str] | None = None,
        *,
        not_infix: Filters | str | Sequence[str] | None = None,
        suffix: Filters | str | Sequence[str] | None = None,
    ) -> Paths:
        """The paths in which nodes that follow each other match the filters of `infix`, one each; in which none match
        those of `not_infix`; and whose last nodes match those of `suffix`. Filters may be text (`FeatureFilter.parse`).
        """
        kept = self.kept
        if infix is not None:
            kept = _both(kept, self._containing(as_filters(infix)))
        if not_infix is not None:
            kept = _both(kept, [~inside for inside in self._containing(as_filters(not_infix))])
        if suffix is not None:
            kept = _both(kept, self._ending(as_filters(suffix)))
        return replace(self, kept=kept)

    def graph(self) -> PathGraph:
        """All paths as one graph (Algorithm 2), with what they leave out as nodes, so that it sums.

        Raises ValueError for capped contributions, which do not sum.
        """
        from pullback.attribution.paths.merge import path_graph

        return path_graph(self)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each path: length, contribution, nodes (ids, the root first), and tokens, as of `Path`."""
        import pandas as pd

        rows = [(len(path), path.contribution, path.nodes, path.tokens) for path in self]
        return pd.DataFrame(rows, columns=["length", "contribution", "nodes", "tokens"])

    # ---- inside ---------------------------------------------------------------------------------------------------

    @cached_property
    def _listed(self) -> list[list[tuple[str, float, str, int]]]:
        """Of each level, the nodes' ids, contributions, tokens and parents."""
        root = self.levels[0].nodes
        words = [[self.meta["str_tokens"][pos] for pos in level.nodes.pos.tolist()] for level in self.levels]
        if int(root.kind) != FEATURE:
            words[0] = [self.meta["root_label"]]
        columns = (
            (level.nodes.ids(root), level.contribution.tolist(), tokens, level.parent.tolist())
            for level, tokens in zip(self.levels, words, strict=True)
        )
        return [list(zip(*level, strict=True)) for level in columns]

    def _path(self, depth: int, place: int) -> Path:
        steps: list[tuple[str, float, str]] = []
        for level in range(depth, -1, -1):
            name, contribution, token, place = self._listed[level][place]
            steps.append((name, contribution, token))
        nodes, contributions, tokens = zip(*reversed(steps), strict=True)
        return Path(nodes, contributions, tokens)

    def _ending(self, filters: Sequence[FeatureFilter]) -> list[Tensor]:
        """Whether the last nodes of each path of the tree match these, in their order."""
        ends = [torch.ones_like(kept) for kept in self.kept]
        for number, one in enumerate(filters):
            shorter = [torch.zeros_like(ends[0]), *ends[:-1]] if number else ends
            ends = [
                one.matches(*level.nodes.columns()) & (before[level.parent] if number else True)
                for level, before in zip(self.levels, shorter, strict=True)
            ]
        return ends

    def _containing(self, filters: Sequence[FeatureFilter]) -> list[Tensor]:
        inside: list[Tensor] = []
        for ends, level in zip(self._ending(filters), self.levels, strict=True):
            inside.append(ends | inside[-1][level.parent] if inside else ends)
        return inside


def _both(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    return [x & y for x, y in zip(a, b, strict=True)]
