"""One result, and the files of them: JSON lines, a header for the run and then a line for every provider of every case.

bench/results/<machine>/<date>-<suite>.jsonl. A later run of the same day replaces the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SCHEMA = 1
STATUSES = ("ok", "absent", "refused", "failed")

# field -> types. Times in ms, memory in MiB; None where it was not measured.
RUN_FIELDS: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "schema": (int,),
    "suite": (str,),
    "machine": (str,),
    "device": (str,),
    "gpu": (str, type(None)),
    "cpu": (str,),
    "cores": (int,),
    "threads": (int,),
    "omp_wait_policy": (str,),
    "cuda": (str, type(None)),
    "python": (str,),
    "versions": (dict,),
    "revision": (str,),
    "time": (str,),
    "load": (float, int),
    "ceilings": (dict,),
}
ROW_FIELDS: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "op": (str,),
    "label": (str,),
    "shape": (dict,),
    "dtype": (str,),
    "data": (str,),
    "provider": (str,),
    "role": (str,),
    "status": (str,),
    "reason": (str,),
}
# Those of a row with status "ok" besides.
TIMED_FIELDS: dict[str, tuple[type, ...]] = {
    "ms": (float,),
    "ms_20": (float,),
    "ms_80": (float,),
    "ms_best": (float,),
    "cpu_ms": (float, type(None)),
    "rounds": (int,),
    "floor_ms": (float,),
    "fraction_of_floor": (float,),
    "peak_mb": (float, type(None)),
    "error": (float, type(None)),
    "notes": (dict,),
    "load": (float, int),
    "others": (float, int),
    "disturbed": (bool,),
}


def check(line: dict[str, Any]) -> None:
    """Raises ValueError with the field that is missing, unknown or of the wrong type."""
    if line.get("kind") == "run":
        fields = RUN_FIELDS
    elif line.get("kind") == "row":
        fields = ROW_FIELDS | (TIMED_FIELDS if line.get("status") == "ok" else {})
    else:
        raise ValueError(f'rows: kind must be "run" or "row", got {line.get("kind")!r}')
    if line["kind"] == "row" and line.get("status") not in STATUSES:
        raise ValueError(f"rows: status must be one of {', '.join(STATUSES)}, got {line.get('status')!r}")
    for name, types in fields.items():
        if name not in line:
            raise ValueError(f"rows: a {line['kind']} needs {name!r}")
        if not isinstance(line[name], types) or (isinstance(line[name], bool) and bool not in types):
            raise ValueError(f"rows: {name!r} must be {' or '.join(t.__name__ for t in types)}, got {line[name]!r}")
    unknown = line.keys() - fields.keys()
    if unknown:
        raise ValueError(f"rows: a {line['kind']} has no field {sorted(unknown)[0]!r}")


def write(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Check every line, then write them in one go."""
    lines = list(lines)
    for line in lines:
        check(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(path.name + ".tmp")
    waiting.write_text("".join(json.dumps(line) + "\n" for line in lines))
    waiting.replace(path)


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(header, rows) of one file. Raises ValueError for a file that is not one of ours, naming the line."""
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            lines.append(json.loads(text))
            check(lines[-1])
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not lines or lines[0]["kind"] != "run" or any(line["kind"] == "run" for line in lines[1:]):
        raise ValueError(f"{path}: the first line, and only it, must describe the run")
    if lines[0]["schema"] != SCHEMA:
        raise ValueError(f"{path}: schema {lines[0]['schema']}, this harness reads {SCHEMA}; measure again")
    return lines[0], lines[1:]
