"""What bench/results holds, as the report wants it: for every machine, the newest measurement of every case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import rows
from .environment import ROOT

FOLDER = ROOT / "bench" / "results"
Row = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """One op at one shape, all its providers, from one run: only within a group do times compare."""

    run: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def op(self) -> str:
        return self.rows[0]["op"]

    @property
    def label(self) -> str:
        return self.rows[0]["label"]

    @property
    def title(self) -> str:
        """E.g. "A: N=2048 d=512 F=8192 k=32, bfloat16"."""
        row = self.rows[0]
        dims = " ".join(f"{name}={value}" for name, value in row["shape"].items())
        extra = [part for part in (row["dtype"], row["data"]) if part not in ("float32", "normal")]
        return (f"{row['label']}: " if row["label"] else "") + ", ".join([dims, *extra])

    @property
    def timed(self) -> list[Row]:
        """Fastest first."""
        return sorted((row for row in self.rows if row["status"] == "ok"), key=lambda row: row["ms"])

    @property
    def competitors(self) -> list[Row]:
        return [row for row in self.timed if row["role"] == "op"]

    def ours(self) -> Row | None:
        """Our fastest, those that are forced onto a narrower instruction set left out."""
        return next((row for row in self.competitors if is_ours(row) and not row["provider"].endswith("-avx2")), None)

    def best_other(self) -> Row | None:
        return next((row for row in self.competitors if not is_ours(row)), None)

    @property
    def disturbed(self) -> bool:
        return any(row["disturbed"] for row in self.timed)


def is_ours(row: Row) -> bool:
    return row["provider"].startswith("pullback")


def load(folder: Path = FOLDER) -> dict[str, list[Group]]:
    """machine -> groups in the order they were measured; of each case, the newest. Tiny runs mean nothing and stay out.

    Raises:
        ValueError: a file that is not one of ours, with its line.
    """
    machines: dict[str, dict[tuple[str, str], Group]] = {}
    runs = [rows.read(path) for path in sorted(folder.glob("*/*.jsonl"))]
    for run, lines in sorted(runs, key=lambda pair: pair[0]["time"]):
        if run["suite"] == "tiny":
            continue
        found = machines.setdefault(run["machine"], {})
        by_case: dict[tuple[str, str], list[Row]] = {}
        for line in lines:
            case = str(sorted(line["shape"].items())) + line["dtype"] + line["data"]
            by_case.setdefault((line["op"], case), []).append(line)
        for key, group in by_case.items():
            found[key] = Group(run, tuple(group))
    order = {
        op: place
        for place, op in enumerate(
            ("train", "harvest", "step", "topk_encode", "select", "decode", "backward", "update")
        )
    }
    return {
        machine: sorted(groups.values(), key=lambda group: order.get(group.op, len(order)))
        for machine, groups in sorted(machines.items())
    }
