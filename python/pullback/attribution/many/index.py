"""What is known of every prompt of a folder of graphs: a line as soon as its graph is written, one table in the end.

The lines are the truth that a resumed run goes by: a prompt is done when its line says so and its file is there.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pullback._util.atomic import atomic_path, sync_directory

if TYPE_CHECKING:
    import pandas as pd

OK = "ok"
# Columns of the table, and of every line. `check` is `Graph.check()`; answers go by `Graph.answers()`.
COLUMNS = (
    "number",
    "file",
    "prompt",
    "tokens",
    "answer",
    "answers",
    "probabilities",
    "replacement",
    "completeness",
    "check",
    "n_nodes",
    "n_edges",
    "seconds",
    "status",
)
LISTS = ("tokens", "answers", "probabilities")
PARQUET, CSV = "index.parquet", "index.csv"


class Journal:
    """The lines of one shard, appended and synced; a line that was cut short by a kill does not count."""

    def __init__(self, folder: Path, shard_id: int, num_shards: int) -> None:
        self.path = folder / f"journal-{shard_id:05d}-of-{num_shards:05d}.jsonl"
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        self._file = open(self.path, "ab")  # noqa: SIM115
        if torn:
            self._file.write(b"\n")
        sync_directory(folder)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        self._file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def journalled(folder: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """The last line of each (number, file) in all journals of a folder, of whatever shards."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("journal-*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and set(row) == set(COLUMNS):
                key = (row["number"], row["file"])
                if found.get(key, {}).get("status") != OK:
                    found[key] = row
    return found


def has_parquet() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def write_index(folder: str | os.PathLike[str]) -> Path:
    """The table of a folder of graphs, from what all its shards have written so far: index.parquet, or without the
    package `pyarrow` index.csv, whose lists are JSON. Written atomically; returns its path."""
    folder = Path(folder)
    while True:
        rows = journalled(folder)
        path = _written(folder, list(rows.values()))
        if journalled(folder) == rows:  # else another shard has gone on, and its table may be the one replaced
            return path


def _written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    import pandas as pd

    readable = {row["number"] for row in rows if row["file"]}
    rows = [row for row in rows if row["file"] or row["number"] not in readable]
    table = pd.DataFrame(sorted(rows, key=lambda row: (row["number"], row["file"])), columns=list(COLUMNS))
    path = folder / (PARQUET if has_parquet() else CSV)
    with atomic_path(path) as temporary:
        if has_parquet():
            table.to_parquet(temporary, index=False)
        else:
            table[list(LISTS)] = table[list(LISTS)].map(json.dumps)
            table.to_csv(temporary, index=False)
    return path


def read_index(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """The table of a folder of graphs: number, file, prompt, tokens, answer, answers, probabilities, replacement,
    completeness, check, n_nodes, n_edges, seconds, status ("ok", or what was wrong with the prompt).

    Raises FileNotFoundError where there is none, ValueError for a Parquet file without the package that reads it.
    """
    import pandas as pd

    parquet, csv = Path(folder) / PARQUET, Path(folder) / CSV
    if parquet.exists():
        if not has_parquet():
            raise ValueError(f"{parquet} is read by the package pyarrow: pip install 'pullback[tables]'")
        return pd.read_parquet(parquet)
    if not csv.exists():
        raise FileNotFoundError(f"there is no index in {folder}; attribute_many writes one when it is done")
    table = pd.read_csv(csv)
    table[list(LISTS)] = table[list(LISTS)].map(json.loads)
    return table
