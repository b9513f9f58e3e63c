"""Activations straight from the model: one forward pass for all layers, mixed into training batches.

The model is used through `mlp_io` and `device` only, so anything that has them can be trained on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback._util.memory import keep_freed_memory, out_of_memory
from pullback.training.masks import Excluded
from pullback.training.mixing import Mixed
from pullback.training.producer import Prefetched
from pullback.training.source import Batch

EMPTY_BATCHES = 1000


def chosen_layers(lens: Any, layers: Iterable[int] | None) -> list[int]:
    """The layers to read, ascending; None: all. Raises ValueError for layers that the model does not have, or none."""
    chosen = list(range(lens.n_layers)) if layers is None else sorted({index(layer) for layer in layers})
    if not chosen or not all(0 <= layer < lens.n_layers for layer in chosen):
        raise ValueError(f"layers must be among 0..{lens.n_layers - 1} of this model, got {chosen}")
    return chosen


class Position(NamedTuple):
    """How far a source of prompts has been read."""

    batches: int = 0
    """batches of prompts taken"""
    checksum: int = 0
    """of all their tokens and masks"""
    limit: int | None = None
    """prompts that fit into one forward pass, None before one did not"""


class Counted(NamedTuple):
    """A batch of prompts with tokens that count."""

    tokens: Tensor
    """Int64[Tensor, "B T"]"""
    keep: Tensor
    """Int64[Tensor, "n"]: places of those that count, among all"""
    position: Position
    """behind the batch"""

    @property
    def token_ids(self) -> Tensor:
        """Int64[Tensor, "n"]: of those that count"""
        return self.tokens.flatten()[self.keep]


class Harvested(NamedTuple):
    """What one batch of prompts gave."""

    rows: list[Tensor]
    """[x, y of the first layer, x, y of the next, ...], each Float[Tensor, "n d"]"""
    token_ids: Tensor
    """Int64[Tensor, "n"]"""
    position: Position
    """behind the batch"""


class Harvester:
    """Runs the model on batches of prompts and keeps the rows of the tokens that count.

    A batch that does not fit into memory is run in halves, and so are those after it.

    Args:
        lens: has `mlp_io` and `device`, as `lens.Unhooked`.
        layers, hook_in, hook_out: what is read.
        excluded: tokens that are left out.
        like: rows come in its dtype and on its device; None for those of the model.
        autocast: let the model multiply in bfloat16.
    """

    def __init__(
        self,
        lens: Any,
        layers: Sequence[int],
        hook_in: str,
        hook_out: str,
        excluded: Excluded,
        like: Tensor | None,
        autocast: bool = False,
    ) -> None:
        self.lens = lens
        self.layers = list(layers)
        self.hooks = hook_in, hook_out
        self.excluded = excluded
        self.like = like
        self.autocast = autocast

    def harvest(self, batches: Iterable[Batch], start: Position | None = None) -> Generator[Harvested, None, None]:
        """Every batch of `batches` that has a token that counts; those before `start` are read and passed over.

        Raises:
            ValueError: `start` was not reached in these batches, or nothing counts in EMPTY_BATCHES of them in turn.
        """
        limit = None if start is None else start.limit
        keep_freed_memory()
        for batch in self.counted(batches, start):
            rows, limit = self._rows(batch.tokens, batch.keep, limit)
            made = [Harvested(rows, batch.token_ids, batch.position._replace(limit=limit))]
            del rows  # large, and not to be held while the next batch runs
            yield made.pop()

    def counted(self, batches: Iterable[Batch], start: Position | None = None) -> Iterator[Counted]:
        """The batches that have a token that counts, without running the model; raises as `harvest`."""
        start = start or Position()
        source = iter(batches)
        batches_taken, checksum = _passed_over(source, start)
        empty = 0
        for tokens, mask in source:
            batches_taken, checksum = batches_taken + 1, _checksum(tokens, mask, checksum)
            keep = self.excluded.applied(tokens, mask).flatten().nonzero().flatten()
            if len(keep) == 0:
                empty += 1
                if empty == EMPTY_BATCHES:
                    raise ValueError(
                        f"the last {EMPTY_BATCHES} batches of prompts had no token to train on: every one is masked, "
                        "BOS, padding or special"
                    )
                continue
            empty = 0
            yield Counted(tokens, keep, Position(batches_taken, checksum))

    def _rows(self, tokens: Tensor, keep: Tensor, limit: int | None) -> tuple[list[Tensor], int | None]:
        while True:
            size = min(limit or len(tokens), len(tokens))
            try:
                return self._in_parts(tokens, keep, size), limit
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or size == 1:
                    raise
            # Out of the except block, so that the failed pass holds no memory any more.
            limit = size // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            tqdm.write(f"{size} prompts do not fit into memory in one forward pass: going on with {limit}")

    def _in_parts(self, tokens: Tensor, keep: Tensor, size: int) -> list[Tensor]:
        parts = []
        for first in range(0, len(tokens), size):
            some = tokens[first : first + size]
            inside = keep - first * tokens.shape[1]
            inside = inside[(inside >= 0) & (inside < some.numel())]
            if len(inside):
                parts.append(self._one_pass(some, inside))
        return parts[0] if len(parts) == 1 else [torch.cat(pieces) for pieces in zip(*parts, strict=True)]

    def _one_pass(self, tokens: Tensor, keep: Tensor) -> list[Tensor]:
        with torch.autocast(self.lens.device.type, torch.bfloat16) if self.autocast else nullcontext():
            io = self.lens.mlp_io(tokens, self.layers, *self.hooks)
        every = len(keep) == tokens.numel()
        at: dict[torch.device, Tensor] = {}
        rows = []
        for layer in self.layers:
            for site in io.pop(layer):
                flat = site.detach().flatten(0, -2)
                if not every:
                    if flat.device not in at:
                        at[flat.device] = keep.to(flat.device)
                    flat = flat.index_select(0, at[flat.device])
                rows.append(flat if self.like is None else flat.to(self.like))
        return rows


class Harvest(Iterator[list[Tensor]]):
    """Training batches [x, y of the first layer, ...] from a model, token by token mixed over many prompts.

    Args:
        harvester: runs the model.
        batches: makes the batches of prompts, from the first one, the same at every call.
        batch_size: tokens of a training batch.
        capacity: tokens of the buffer in which they are mixed.
        generator: draws from that buffer.
        prefetch: batches of prompts that a background thread runs ahead; 0 for none.
    """

    def __init__(
        self,
        harvester: Harvester,
        batches: Callable[[], Iterable[Batch]],
        *,
        batch_size: int,
        capacity: int,
        generator: torch.Generator,
        prefetch: int = 0,
    ) -> None:
        self._harvester = harvester
        self._batches = batches
        self._prefetch = prefetch
        self._position = Position()
        self._source: Iterator[Any] | None = None
        self._mixed = Mixed(self._rows(), batch_size, capacity, generator)

    def __next__(self) -> list[Tensor]:
        return next(self._mixed)

    def close(self) -> None:
        """Stop running ahead."""
        if isinstance(self._source, Prefetched):
            self._source.close()

    def state_dict(self) -> dict[str, Any]:
        """How far the prompts were used, and the buffer."""
        return {"position": self._position._asdict(), "mixing": self._mixed.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; call it before the first batch. The prompts up to there are read again, without
        running the model, and compared by checksum."""
        self._position = Position(**state["position"])
        self._mixed.load_state_dict(state["mixing"])

    def _rows(self) -> Iterator[list[Tensor]]:
        start = self._position

        def made_ahead() -> Generator[Any, None, None]:
            return self._made(start)

        self._source = Prefetched(made_ahead, self._prefetch) if self._prefetch else made_ahead()
        for item in self._delivered(self._source):
            self._position = item.position
            made = [item.rows]
            del item
            yield made.pop()

    def _made(self, start: Position) -> Generator[Any, None, None]:
        """What can be made ahead of training."""
        return self._harvester.harvest(self._batches(), start)

    def _delivered(self, source: Iterator[Any]) -> Iterator[Harvested]:
        """What comes of it when it is due."""
        return source


def _passed_over(source: Iterator[Batch], start: Position) -> tuple[int, int]:
    """Read the batches before `start` again, without the model."""
    checksum = 0
    for taken in range(start.batches):
        batch = next(source, None)
        if batch is None:
            raise ValueError(
                f"resume: the tokens ended after {taken} batches of prompts, and {start.batches} were used before; "
                "give the tokens that the run began with (an iterator from its beginning)"
            )
        checksum = _checksum(*batch, checksum)
    if checksum != start.checksum:
        raise ValueError(
            "resume: these are not the tokens that the run began with, in their order; give the same tokens, mask and "
            "context_size (an iterator from its beginning)"
        )
    return start.batches, checksum


def _checksum(tokens: Tensor, mask: Tensor, so_far: int) -> int:
    for tensor in (tokens, mask):
        so_far = zlib.crc32(tensor.contiguous().cpu().numpy().tobytes(), so_far)
    return so_far
