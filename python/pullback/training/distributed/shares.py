"""How processes divide the work on one dictionary: by feature, or by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from pullback.ops import SparseActivations, topk_select
from pullback.training.distributed.peers import Peers
from pullback.training.rules import Slots
from pullback.training.share import Share

T = TypeVar("T")


def block(place: int, size: int, n: int) -> slice:
    """The part of n things that one of `size` processes has: ceil(n / size), the last ones what is left. (As
    `torch.chunk` cuts, and with it the checkpoints.)"""
    each = -(-n // size)
    return slice(min(n, each * place), min(n, each * (place + 1)))


class FeatureShare(Share):
    """A block of features, with their rows of W_enc and W_dec and their moments; every process has all tokens.

    A step exchanges, for n tokens and R processes, R n k candidates, and a sum of n d_out partial reconstructions.
    """

    whole = False

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self.first = peers.rank == 0

    def features(self, d_sae: int) -> slice:
        size = self.peers.size
        if block(size - 1, size, d_sae).start >= d_sae:
            raise ValueError(
                f"d_sae={d_sae} features cannot be shared by {size} processes: with {-(-d_sae // size)} in each, the "
                "last one has none; take fewer processes"
            )
        return block(self.peers.rank, size, d_sae)

    def sum(self, part: Tensor) -> Tensor:
        return self.peers.sum(part)

    def smallest(self, own: Tensor) -> Tensor:
        return self.peers.smallest(own)

    def best(self, values: Tensor, k: int, relu: bool) -> Tensor:
        """Blocks of features ascend with the processes, so candidates side by side are in order of id, and no id
        travels."""
        nothing = 0.0 if relu else -torch.inf
        padded = torch.nn.functional.pad(values, (0, k - values.shape[1]), value=nothing)
        side_by_side = self.peers.gathered(padded).transpose(0, 1).flatten(1)
        _, places = topk_select(side_by_side, k, relu=relu)
        chosen = torch.zeros_like(side_by_side, dtype=torch.bool).scatter_(1, places.long(), True)
        start = k * self.peers.rank
        return torch.where(chosen[:, start : start + values.shape[1]], values, 0)

    def best_of_batch(self, acts: SparseActivations, k: int) -> SparseActivations:
        """By row and then by process, entries stand in order of (row, id)."""
        values = torch.cat(self.peers.joined(acts.values))
        counts = self.peers.gathered(acts.indptr.diff())
        row = torch.arange(acts.n_rows, device=acts.device).repeat(self.peers.size)
        order = row.repeat_interleave(counts.flatten()).argsort(stable=True)
        pointers = torch.nn.functional.pad(counts.sum(0).cumsum(0), (1, 0))
        kept = SparseActivations(pointers, order.int(), values[order], max(1, len(values)))
        kept = kept.largest(k * acts.n_rows).indices
        start = int(counts[: self.peers.rank].sum())
        return acts.where(_marked(kept, len(values))[start : start + acts.nnz])


class TokenShare(Share):
    """All features, a copy in every process; each encodes its own rows of a batch and tells the others the entries.

    From there on every process does the same to its copy. A step exchanges n k ids and values; residuals and gradients
    would be n d_out and F (d_in + d_out) numbers, and are cheap to make of the entries.
    """

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self._n = 0  # rows of the batch, of all processes

    def encoded(self, encode: Callable[[Tensor], T], x: Tensor) -> T:
        self._n = len(x)
        batch = encode(x[block(self.peers.rank, self.peers.size, len(x))])
        # One type in, the same type out, of all rows.
        return self._slots(batch) if isinstance(batch, Slots) else self._entries(batch)  # type: ignore[return-value, arg-type]

    def batch_k(self, k: int, n: int) -> int:
        """All of a batch's k a row may come from the rows of one process."""
        return -(-k * self._n // max(1, n))

    def best_of_batch(self, acts: SparseActivations, k: int) -> SparseActivations:
        every = self.peers.joined(acts.values)
        values = torch.cat(every)
        places = torch.arange(len(values), dtype=torch.int32, device=acts.device)
        row = torch.tensor([0, len(values)], device=acts.device)
        kept = SparseActivations(row, places, values, max(1, len(values))).largest(k * self._n).indices
        start = sum(map(len, every[: self.peers.rank]))
        return acts.where(_marked(kept, len(values))[start : start + acts.nnz])

    def _slots(self, batch: Slots) -> Slots:
        """How many rows each has is known, so nothing is waited for."""
        missing = -(-self._n // self.peers.size) - len(batch.values)
        values, ids = (torch.nn.functional.pad(own, (0, 0, 0, missing)) for own in batch)
        return Slots(*(self.peers.gathered(own).flatten(0, 1)[: self._n] for own in (values, ids)))

    def _entries(self, batch: SparseActivations) -> SparseActivations:
        counts, ids, values = (
            torch.cat(self.peers.joined(own)) for own in (batch.indptr.diff(), batch.indices, batch.values)
        )
        return SparseActivations(torch.nn.functional.pad(counts.cumsum(0), (1, 0)), ids, values, batch.n_features)


def _marked(places: Tensor, n: int) -> Tensor:
    """Bool[Tensor, "n"], true at the places."""
    return torch.zeros(n, dtype=torch.bool, device=places.device).index_fill_(0, places.long(), True)
