"""Targets pulled back in batches that fit into memory: what is explained, then features, all or by influence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback._util.memory import out_of_memory
from pullback.attribution.autograd import AutogradEngine
from pullback.attribution.explained import Explained
from pullback.attribution.gather import linear_rows
from pullback.attribution.linear.sweep import bytes_per_target
from pullback.attribution.local import LocalModel
from pullback.attribution.rows import EdgeRows
from pullback.attribution.settings import Settings
from pullback.attribution.targets import Targets, feature_batch, joined
from pullback.lens import Lens

WORKING_MEMORY = 2 * 2**30


def targets_at_once(local: LocalModel, batch_size: int) -> int:
    """As many as were asked for, fewer where they would take more than `WORKING_MEMORY`."""
    return max(1, min(batch_size, WORKING_MEMORY // bytes_per_target(local)))


class Batches:
    """Rows of one prompt's graph. A row is named as `Rows` says."""

    def __init__(self, lens: Lens, local: LocalModel, explained: Explained, settings: Settings) -> None:
        self.local, self.explained, self.settings = local, explained, settings
        self.batch_size = targets_at_once(local, settings.batch_size)
        self.engine = AutogradEngine(lens, local) if settings.engine == "autograd" else None
        limit = settings.max_feature_nodes
        self.edges = EdgeRows(local.layout, settings.edge_rule, ranked=limit is not None)
        self.candidates = explained.reach(local)
        most = len(self.candidates)
        self.n_features = most if limit is None else min(max(limit, len(explained.features)), most)
        self.chosen = self.candidates[:0]

    def run(self) -> None:
        """Compute all rows of the graph."""
        verbose = self.settings.verbose
        if verbose:
            tqdm.write(f"{self.n_features} features in batches of {self.batch_size}")
        with tqdm(total=self.n_features, desc="attribution", unit="feature", disable=not verbose) as bar:
            for names in self.rounds():
                self._add(names, bar)

    def rounds(self) -> Iterator[Tensor]:
        """Names of targets, features ascending and then others; their rows must be there before the next are asked
        for. In the end, `chosen` are the places of the graph's features, ascending."""
        besides = -1 - torch.arange(len(self.explained))
        if self.n_features == len(self.candidates):
            self.chosen = self.candidates
            rounds: Iterable[Tensor] = [torch.cat([self.candidates, besides])]
        else:
            rounds = chain([besides], self._by_influence())
        yield from (names for names in rounds if len(names))

    def _by_influence(self) -> Iterator[Tensor]:
        """The explained features, and those of largest influence through the rows so far, ranked again every few
        batches."""
        waiting = torch.zeros(int(self.candidates[-1]) + 1, dtype=torch.bool)
        waiting[self.candidates] = True
        nxt, missing = self.explained.features, self.n_features
        while True:
            if len(nxt):
                # Targets sorted by layer and position share their sweep and its causal cone: that is layout order.
                yield nxt.sort().values
            waiting[nxt] = False
            missing -= len(nxt)
            if missing == 0:
                break
            rank = self.edges.influence(self.explained)[: len(waiting)].masked_fill(~waiting, -1)
            step = min(missing, self.settings.update_interval * self.batch_size)
            nxt = torch.argsort(rank, descending=True, stable=True)[:step]
        self.chosen = self.candidates[~waiting[self.candidates]]

    def _add(self, names: Tensor, bar: Any) -> None:
        """Rows of these names, in batches; smaller ones from now on where one does not fit into memory."""
        start = 0
        while start < len(names):
            batch = names[start : start + self.batch_size]
            try:
                self._add_batch(batch)
                start += len(batch)
                bar.update(int((batch >= 0).sum()))
                continue
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(batch) == 1:
                    raise
            # Out of the except block, so that what failed holds no memory any more.
            self.batch_size = len(batch) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            tqdm.write(f"{len(batch)} targets do not fit into memory together: going on with {self.batch_size}")

    def _add_batch(self, names: Tensor) -> None:
        targets = self.targets(names)
        self.edges.append(names, linear_rows(self.local, targets) if self.engine is None else self.engine.rows(targets))

    def targets(self, names: Tensor) -> Targets:
        """Of some of a round's names."""
        names = names.to(self.local.trace.tokens.device)
        features, besides = names[names >= 0], self.explained.targets[-1 - names[names < 0]]
        return joined([feature_batch(self.local.stack, features), besides]) if len(features) else besides
