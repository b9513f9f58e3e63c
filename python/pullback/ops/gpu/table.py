"""Which way a GPU encodes: a table by architecture, dtype and shape, which `bench/tune_encoder.py` measures and writes.

An entry with ``"measured": false`` was chosen on paper. A shape takes the entry nearest to it of its own architecture
and dtype; without one, `DEFAULT`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("table.json")


@dataclass(frozen=True)
class Plan:
    """How to encode.

    Attributes:
        way: "chunks": a library GEMM into blocks of rows x features that stay in L2, a select for each, and a running
            merge; "tiles": a GEMM that writes the maxima of tiles, and a select that reads the tiles it has to.
        rows: rows of a block. For "tiles" as many as the scratch holds, and at most these.
        features: features of a block; "tiles" takes all.
        tile: block shape, warps and stages of the GEMM of "tiles"; None for its own default.
    """

    way: str
    rows: int
    features: int
    tile: tuple[tuple[str, int], ...] | None = None


# 2048 x 8192 pre-activations are 32 MiB in bfloat16: they fit in the L2 of a Hopper.
DEFAULT = Plan("chunks", rows=2048, features=8192)


def plan(arch: str, dtype: torch.dtype, d: int, F: int) -> Plan:
    """The plan for F features of width d on `arch` ("sm_90")."""
    return _nearest(arch, str(dtype).removeprefix("torch."), d, F)


@lru_cache(maxsize=256)
def _nearest(arch: str, dtype: str, d: int, F: int) -> Plan:
    entries = [entry for entry in table() if entry["arch"] == arch and entry["dtype"] == dtype]
    if not entries:
        return DEFAULT
    best = min(entries, key=lambda entry: abs(math.log(F / entry["F"])) + abs(math.log(d / entry["d"])))
    tile = best["tile"] and tuple(best["tile"].items())
    return Plan(best["way"], best["rows"], best["features"], tile)


@lru_cache(maxsize=1)
def table() -> list[dict[str, Any]]:
    """The entries of the table."""
    return json.loads(TABLE.read_text())
