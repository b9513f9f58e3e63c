"""Feature ids, looked at before they are used."""

from __future__ import annotations

from torch import Tensor


def checked(op: str, ids: Tensor, n_features: int) -> Tensor:
    """The ids as int64. Raises ValueError where one is not in 0..n_features-1.

    Not on a GPU, where to look would be to wait: there the indexing itself asserts.
    """
    if ids.is_cpu and ids.numel():
        bad = ((ids < 0) | (ids >= n_features)).nonzero()
        if len(bad):
            e = int(bad[0, 0])
            raise ValueError(f"{op}: feature id {int(ids[e])} at entry {e} is not in 0..F-1={n_features - 1}")
    return ids.long()
