"""Mixing tokens of many prompts into training batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class Mixed(Iterator[list[Tensor]]):
    """Batches of `batch_size` rows drawn from a buffer of about `capacity`, so that neighbours in a batch come from
    many prompts.

    A full buffer gives away half of itself, in an order drawn from `generator`; new rows take the places that fall
    free, so a row is copied once into the buffer and once out of it. The last batch may be smaller.

    Args:
        rows: lists of tensors [n, ...] of equal n, which stay aligned.
    """

    def __init__(
        self, rows: Iterable[list[Tensor]], batch_size: int, capacity: int, generator: torch.Generator
    ) -> None:
        self._rows = iter(rows)
        self._batch_size = batch_size
        self._capacity = max(capacity, batch_size)
        self._generator = generator
        self._pool: list[Tensor] = []
        self._kept = torch.empty(0, dtype=torch.long)  # places of rows that wait to be drawn
        self._due = self._kept  # places of rows that were drawn, in the order they go out
        self._free = self._kept

    def __next__(self) -> list[Tensor]:
        while len(self._due) == 0:
            ended = not self._put(next(self._rows, None))
            held = len(self._kept)
            if ended and held == 0:
                raise StopIteration
            if ended:
                self._draw(held)
            elif held >= self._capacity:
                self._draw(max(1, held // (2 * self._batch_size)) * self._batch_size)
        places, self._due = self._due[: self._batch_size], self._due[self._batch_size :]
        self._free = torch.cat([self._free, places])
        return [tensor.index_select(0, places.to(tensor.device)) for tensor in self._pool]

    def state_dict(self) -> dict[str, Any]:
        """What is in the buffer, and the generator, so that the same batches follow; `rows` is the caller's."""
        held = torch.cat([self._due, self._kept])
        return {
            "n_due": len(self._due),
            "generator": self._generator.get_state(),
            "rows": {str(i): tensor.index_select(0, held.to(tensor.device)) for i, tensor in enumerate(self._pool)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, on the device that its tensors are on."""
        stored = state.get("rows", {})
        self._generator.set_state(state["generator"])
        self._pool = [stored[str(i)] for i in range(len(stored))]
        places = torch.arange(len(self._pool[0]) if self._pool else 0)
        self._due, self._kept = places[: state["n_due"]], places[state["n_due"] :]
        self._free = places[:0]

    def _draw(self, count: int) -> None:
        order = torch.randperm(len(self._kept), generator=self._generator)
        self._due, self._kept = self._kept[order[:count]], self._kept[order[count:]]

    def _put(self, fresh: list[Tensor] | None) -> bool:
        if fresh is None:
            return False
        n = len(fresh[0])
        if n > len(self._free):
            self._grow(fresh, n)
        places, self._free = self._free[:n], self._free[n:]
        for tensor, rows in zip(self._pool, fresh, strict=True):
            tensor.index_copy_(0, places.to(tensor.device), rows)
        self._kept = torch.cat([self._kept, places])
        return True

    def _grow(self, fresh: list[Tensor], n: int) -> None:
        held = len(self._pool[0]) if self._pool else 0
        size = max(self._capacity + n, held - len(self._free) + n)
        # The pages of a buffer that is larger than its content are never touched.
        pool = [rows.new_empty((size, *rows.shape[1:])) for rows in fresh]
        for old, new in zip(self._pool, pool, strict=False):
            new[:held] = old
        self._pool = pool
        self._free = torch.cat([self._free, torch.arange(held, size)])
