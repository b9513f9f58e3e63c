"""Targets pulled back in batches that fit into memory: what is explained, then features, all or by influence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback._util.memory import out_of_memory
from pullback.attribution.autograd import AutogradEngine
from pullback.attribution.explained import Explained
from pullback.attribution.linear import bytes_per_target, linear_rows
from pullback.attribution.local import LocalModel
from pullback.attribution.rows import EdgeRows
from pullback.attribution.settings import Settings
from pullback.attribution.targets import Targets, feature_batch
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
        self.edges = EdgeRows(local.layout, settings.edge_rule)

    def run(self) -> Tensor:
        """Compute all rows of the graph; returns the places of its features, ascending."""
        limit, verbose = self.settings.max_feature_nodes, self.settings.verbose
        candidates = self.explained.reach(self.local)
        n = len(candidates) if limit is None else min(max(limit, len(self.explained.features)), len(candidates))
        if verbose:
            size = self.batch_size * bytes_per_target(self.local) / 2**20
            tqdm.write(f"{n} features in batches of {self.batch_size}: about {size:.0f} MiB of working memory")
        with tqdm(total=n, desc="attribution", unit="feature", disable=not verbose) as bar:
            self._add(-1 - torch.arange(len(self.explained)), None)
            if n == len(candidates):
                self._add_features(candidates, bar)
                return candidates
            return self._by_influence(candidates, n, bar)

    def _by_influence(self, candidates: Tensor, n: int, bar: Any) -> Tensor:
        """The explained features, and those of largest influence through the rows so far, ranked again every few
        batches; n in all."""
        waiting = torch.zeros(int(candidates[-1]) + 1, dtype=torch.bool)
        waiting[candidates] = True
        nxt, missing = self.explained.features, n
        while True:
            self._add_features(nxt, bar)
            waiting[nxt] = False
            missing -= len(nxt)
            if missing == 0:
                return candidates[~waiting[candidates]]
            rank = self.edges.influence(self.explained)[: len(waiting)].masked_fill(~waiting, -1)
            step = min(missing, self.settings.update_interval * self.batch_size)
            nxt = torch.argsort(rank, descending=True, stable=True)[:step]

    def _add_features(self, chosen: Tensor, bar: Any) -> None:
        """Targets sorted by layer and position share their sweep and its causal cone: that is layout order."""
        self._add(chosen.sort().values, bar)

    def _add(self, names: Tensor, bar: Any) -> None:
        """Rows of these names, in batches; smaller ones from now on where one does not fit into memory."""
        start = 0
        while start < len(names):
            batch = names[start : start + self.batch_size]
            try:
                self._add_batch(batch)
                start += len(batch)
                if bar is not None:
                    bar.update(len(batch))
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
        targets = self._targets(names.to(self.local.trace.tokens.device))
        block, zeroed = linear_rows(self.local, targets) if self.engine is None else self.engine.rows(targets)
        self.edges.append(names, targets.layer, targets.own, block, zeroed)

    def _targets(self, names: Tensor) -> Targets:
        """All of them features, or none."""
        return self.explained.targets[-1 - names] if int(names[0]) < 0 else feature_batch(self.local, names)
