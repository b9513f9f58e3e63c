"""Sums by key over many graphs, in memory that grows with the different keys, not with the graphs."""

from __future__ import annotations

import numpy as np

from pullback.attribution.collection.keys import Floats, Ints

PENDING = 1 << 22  # entries that wait to be summed


class Tally:
    """For keys of `width` integers, the sums of some columns.

    Columns of what is added are summed per key in the order they come: the same graphs give the same bits.
    """

    def __init__(self, width: int, columns: int) -> None:
        self.keys: Ints = np.zeros((0, width), np.int64)
        self.sums: Floats = np.zeros((0, columns))
        self._waiting: list[tuple[Ints, Floats]] = []
        self._n_waiting = 0

    def add(self, keys: Ints, values: Floats) -> None:
        """keys (n, width), values (n, columns)"""
        self._waiting.append((keys, values))
        self._n_waiting += len(keys)
        if self._n_waiting > max(PENDING, len(self.keys)):
            self.settle()

    def settle(self) -> Tally:
        """Sum what waits: `keys` then are different and ascend."""
        parts = [(self.keys, self.sums), *self._waiting]
        keys, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        self._waiting, self._n_waiting = [], 0
        self.keys, self.sums = summed(keys, values)
        return self


def summed(keys: Ints, values: Floats) -> tuple[Ints, Floats]:
    """Different keys, ascending, and the sums of their values' columns."""
    order = np.lexsort(keys.T[::-1])
    keys, values = keys[order], values[order]
    if not len(keys):
        return keys, values
    first = np.concatenate([[True], (keys[1:] != keys[:-1]).any(1)])
    return keys[first], np.add.reduceat(values, first.nonzero()[0], axis=0)
