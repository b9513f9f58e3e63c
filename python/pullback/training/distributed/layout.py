"""Which process has which part of which layer."""

from __future__ import annotations

from collections.abc import Sequence

from pullback.training.distributed.peers import Peers
from pullback.training.distributed.shares import FeatureShare, TokenShare
from pullback.training.distributed.world import World
from pullback.training.share import WHOLE, Share


class Layout:
    """Processes in rows and columns: the layers are divided among the rows, the features of each among the columns.
    With copies in place of shares, there is one row.

    Args:
        world: all processes.
        parallel: as in TrainConfig; None for "layers" where there are as many, else "features".
        layers: of the run, ascending.

    Attributes:
        layers: those of this process's row.
        share: what it does for each of them.
        owners: {layer: ranks of the processes that hold it, in order of its features}.
        copied: whether every process holds everything.
    """

    def __init__(self, world: World, parallel: str | Sequence[int] | None, layers: Sequence[int]) -> None:
        size = world.size
        if parallel is None:
            parallel = "layers" if len(layers) >= size else "features"
        if isinstance(parallel, str):
            n_rows, n_columns = (size, 1) if parallel == "layers" else (1, size)
        else:
            n_rows, n_columns = parallel
        if n_rows * n_columns != size:
            raise ValueError(f"parallel={parallel!r} is for {n_rows * n_columns} processes, and there are {size}")
        if n_rows > len(layers):
            raise ValueError(
                f"parallel={parallel!r}: {len(layers)} layers cannot be divided among {n_rows} processes; "
                'choose "features", or [layers, features] like '
                f"[{len(layers)}, {max(1, size // len(layers))}]"
            )
        self.world = world
        self.copied = parallel == "data"
        rows = [list(range(i * n_columns, (i + 1) * n_columns)) for i in range(n_rows)]
        cuts = [i * len(layers) // n_rows for i in range(n_rows + 1)]
        self.owners = {layer: ranks for i, ranks in enumerate(rows) for layer in layers[cuts[i] : cuts[i + 1]]}
        self.layers = [layer for layer, ranks in self.owners.items() if world.rank in ranks]
        self.share: Share = WHOLE
        if n_columns > 1:
            peers: Peers = world if n_rows == 1 else world.split(rows)
            self.share = TokenShare(peers) if self.copied else FeatureShare(peers)

    def held_by(self, rank: int) -> list[int]:
        """The layers that a process holds, or a part of."""
        return [layer for layer, ranks in self.owners.items() if rank in ranks]
