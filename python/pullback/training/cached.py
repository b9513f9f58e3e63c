"""Reading an activation cache: no model, no dataset, no more memory than a batch takes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pullback.training import shards
from pullback.transcoders import ModelReading

LEAST_MIXED_SHARDS = 4
OPEN_SHARDS = 64


class CachedActivations:
    """The inputs and targets of transcoders of several layers, as `cache_activations` wrote them.

    Files are mapped into memory, read-only: any number of readers may share them. Before the first use of a shard its
    sha256 is compared with the manifest's.

    Args:
        path: folder of the cache.
        on_corrupt: what to do about a shard that is missing or damaged: "refuse" raises, "skip" warns and goes on
            without it. Either names it, and nothing of it is ever returned.

    Attributes:
        layers: the layers it holds.
        widths: {layer: (d_in, d_out)}
        hook_name, hook_name_out: where inputs and targets were read.
        dtype: how they are stored.
        readings: {layer: how the model was read}
        complete: False for a cache that was not made to the end; what is there can be used.

    Raises:
        FileNotFoundError: no cache is there.
        ValueError: its manifest is damaged, or a shard is and `on_corrupt` is "refuse".
    """

    def __init__(self, path: str | os.PathLike[str], *, on_corrupt: str = "refuse") -> None:
        if on_corrupt not in ("refuse", "skip"):
            raise ValueError(f'CachedActivations: on_corrupt must be "refuse" or "skip", got {on_corrupt!r}')
        self.path = Path(path)
        self.on_corrupt = on_corrupt
        self.manifest = shards.read_manifest(self.path)
        settings = self.manifest["settings"]
        self.layers: list[int] = settings["layers"]
        self.hook_name: str = settings["hook_name"]
        self.hook_name_out: str = settings["hook_name_out"]
        self.dtype: str = settings["dtype"]
        self.readings = {
            int(layer): ModelReading.from_dict(reading) for layer, reading in self.manifest["readings"].items()
        }
        self.widths = {layer: (reading.d_model, reading.d_model) for layer, reading in self.readings.items()}
        self.complete: bool = self.manifest["complete"]
        self._shards: list[dict[str, Any]] = self.manifest["shards"]
        self._sound: set[int] = set()
        self._corrupt: set[int] = set()
        if not self.complete:
            warnings.warn(
                f"{self.path} was not made to the end: it has {self.n_tokens:,} tokens; "
                "call cache_activations again to continue it",
                stacklevel=2,
            )
        for number, shard in enumerate(self._shards):
            if not shards.has_size(self.path, shard):
                self._report(number, "missing or cut off")

    @property
    def n_tokens(self) -> int:
        """Rows of the shards that are not known to be damaged."""
        return sum(shard["rows"] for i, shard in enumerate(self._shards) if i not in self._corrupt)

    @property
    def corrupt(self) -> list[str]:
        """Shards found damaged so far."""
        return [self._shards[i]["file"] for i in sorted(self._corrupt)]

    def __len__(self) -> int:
        return self.n_tokens

    def __repr__(self) -> str:
        return f"CachedActivations({str(self.path)!r}: {self.n_tokens:,} tokens of layers {self.layers}, {self.dtype})"

    def verify(self) -> list[str]:
        """Compare every shard with the manifest now; returns the names of those that are damaged."""
        for number in range(len(self._shards)):
            self.is_sound(number)
        return self.corrupt

    def is_sound(self, number: int) -> bool:
        """Whether a shard is what was written; raises ValueError if it is not and damage is to be refused."""
        if number not in self._sound and number not in self._corrupt:
            shard = self._shards[number]
            if shards.has_size(self.path, shard) and shards.sha256(self.path / shard["file"]) == shard["sha256"]:
                self._sound.add(number)
            else:
                self._report(number, "not what was written: its sha256 differs")
        return number in self._sound

    def shard(self, number: int, layers: Sequence[int] | None = None) -> dict[str, Tensor]:
        """The tensors of a sound shard, by their names in the file, mapped into memory. Raises ValueError for a damaged
        one."""
        file = self.path / self._shards[number]["file"]
        if not self.is_sound(number):
            raise ValueError(f"{file} is damaged")
        names = [shards.site(layer, which) for layer in (layers or self.layers) for which in "xy"]
        scales = [name + shards.SCALE for name in names] if self.dtype == "int8" else []
        try:
            with safe_open(file, framework="pt", device="cpu") as handle:
                return {name: handle.get_tensor(name) for name in [*names, *scales, shards.TOKEN_IDS]}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error

    def chosen(self, layers: Sequence[int] | None) -> list[int]:
        """These layers, all for None. Raises ValueError for one that is not cached."""
        chosen = self.layers if layers is None else list(layers)
        missing = [layer for layer in chosen if layer not in self.layers]
        if missing or not chosen:
            raise ValueError(f"{self.path} holds layers {self.layers}, not {missing or 'none'}; cache those")
        return chosen

    def batches(
        self,
        batch_size: int,
        *,
        layers: Sequence[int] | None = None,
        seed: int = 0,
        epochs: int | None = 1,
        mix_tokens: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> CachedBatches:
        """Shuffled batches [x, y of the first layer, x, y of the next, ...], each Float[Tensor, 'n d'].

        Shards are taken in random order, a few at a time, and rows in random order of these; another order every epoch,
        the same ones for the same seed. Only the last batch may be smaller.

        Args:
            batch_size: rows of a batch.
            layers: which, in which order; None for all.
            seed: of the order.
            epochs: passes over the cache; None for no end.
            mix_tokens: rows that are mixed at least; None for 16 batches. At least four shards are.
            dtype, device: of the batches.
        """
        chosen = self.chosen(layers)
        if batch_size < 1:
            raise ValueError(f"batches: batch_size must be at least 1, got {batch_size}")
        return CachedBatches(
            self, chosen, batch_size, seed, epochs, mix_tokens or 16 * batch_size, dtype, torch.device(device)
        )

    def row_counts(self) -> list[int]:
        """Rows of every shard, damaged or not."""
        return [shard["rows"] for shard in self._shards]

    def leave_out(self, names: Sequence[str]) -> None:
        """Treat shards as damaged, by name, without looking."""
        self._corrupt |= {i for i, shard in enumerate(self._shards) if shard["file"] in set(names)}
        self._sound -= self._corrupt

    def known_corrupt(self, number: int) -> bool:
        """Whether a shard was found damaged, without looking."""
        return number in self._corrupt

    def _report(self, number: int, what: str) -> None:
        file = self.path / self._shards[number]["file"]
        self._corrupt.add(number)
        if self.on_corrupt == "refuse":
            raise ValueError(
                f"{file} is {what}. Remove it and call cache_activations again, which writes it and what follows anew; "
                'or open the cache with on_corrupt="skip" to go on without it'
            )
        warnings.warn(f"{file} is {what}; it is left out", stacklevel=3)


class CachedBatches(Iterator[list[Tensor]]):
    """See `CachedActivations.batches`."""

    def __init__(
        self,
        cache: CachedActivations,
        layers: list[int],
        batch_size: int,
        seed: int,
        epochs: int | None,
        mix_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._cache = cache
        self._layers = layers
        self._batch_size = batch_size
        self._seed = seed
        self._epochs = epochs
        self._mix_tokens = mix_tokens
        self._dtype = dtype
        self._device = device
        counts = torch.tensor([0, *cache.row_counts()])
        self._starts = counts.cumsum(0)
        self._open: dict[int, dict[str, Tensor]] = {}
        self._passed = 0  # batches
        self._replaying = False
        self._groups = self._order()
        self._due = torch.empty(0, dtype=torch.long)

    def __next__(self) -> list[Tensor]:
        rows = self._take()
        if len(rows) == 0:
            raise StopIteration
        owner = self._owner(rows)
        places = {number: (owner == number).nonzero().flatten() for number in owner.unique().tolist()}
        opened = {number: self._opened(number) for number in places}
        batch = []
        for layer in self._layers:
            for which in "xy":
                name = shards.site(layer, which)
                width = next(iter(opened.values()))[name].shape[1]
                out = torch.empty(len(rows), width, dtype=self._dtype)
                for number, at in places.items():
                    local = rows[at] - self._starts[number]
                    out.index_copy_(0, at, shards.restored(opened[number], name, local, self._dtype))
                batch.append(out.to(self._device))
        return batch

    def state_dict(self) -> dict[str, Any]:
        """How far it is, and what it had to leave out."""
        return {"batches": self._passed, "left_out": self._cache.corrupt}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; nothing is read for the batches before."""
        self._cache.leave_out(state["left_out"])
        self._groups, self._due, self._passed = self._order(), self._due[:0], 0
        self._replaying = True
        while self._passed < state["batches"] and len(self._take()):
            pass
        self._replaying = False
        owner = self._owner(self._due)
        for number in owner.unique().tolist():
            if not self._cache.is_sound(number):
                self._due, owner = self._due[owner != number], owner[owner != number]

    def _take(self) -> Tensor:
        """The numbers of the next rows, over all shards."""
        while len(self._due) < self._batch_size:
            group = next(self._groups, None)
            if group is None:
                break
            self._due = torch.cat([self._due, group])
        rows, self._due = self._due[: self._batch_size], self._due[self._batch_size :]
        self._passed += len(rows) > 0
        return rows

    def _order(self) -> Iterator[Tensor]:
        """The numbers of rows, a few shards at a time, in random order."""
        generator = torch.Generator().manual_seed(self._seed)
        counts = self._starts.diff()
        epoch = 0
        while self._epochs is None or epoch < self._epochs:
            epoch += 1
            found, group = 0, []
            order = torch.randperm(len(counts), generator=generator).tolist()
            for i, number in enumerate(order):
                if self._usable(number):
                    group.append(torch.arange(int(self._starts[number]), int(self._starts[number + 1])))
                many = sum(map(len, group)) >= self._mix_tokens and len(group) >= LEAST_MIXED_SHARDS
                if group and (many or i + 1 == len(order)):
                    rows = torch.cat(group)
                    found, group = found + len(rows), []
                    yield rows[torch.randperm(len(rows), generator=generator)]
            if found == 0:
                raise ValueError(f"{self._cache.path} has no shard that is sound: make the cache again")

    def _usable(self, number: int) -> bool:
        return not self._cache.known_corrupt(number) and (self._replaying or self._cache.is_sound(number))

    def _owner(self, rows: Tensor) -> Tensor:
        """The shard of each row."""
        return torch.searchsorted(self._starts, rows, right=True) - 1

    def _opened(self, number: int) -> dict[str, Tensor]:
        shard = self._open.pop(number, None)
        self._open[number] = self._cache.shard(number, self._layers) if shard is None else shard  # the last one used
        while len(self._open) > OPEN_SHARDS:
            del self._open[next(iter(self._open))]
        return self._open[number]
