"""Markdown out of results: the short table of the README and the page with everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .results import Group, Row, is_ours

Results = Mapping[str, Sequence[Group]]

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NONE_YET = (
    "No results are committed yet: `make bench` measures this machine, `make bench-peers` the other libraries beside "
    "it, and `make bench-report` writes the table here.\n"
)
# Ops that are said in tokens a second.
RATES = {"train": "a whole training run, all layers", "step": "one training step"}
METHOD = Path(__file__).with_name("method.md").read_text()


def readme(results: Results) -> str:
    """The block between the markers of the README."""
    blocks = [_summary(groups) for groups in results.values()]
    return "\n".join(block for block in blocks if block) or NONE_YET


def page(results: Results, plots: Mapping[str, Sequence[str]]) -> str:
    """docs/BENCHMARKS.md; `plots` are file names for each machine."""
    parts = [METHOD] if results else [METHOD, NONE_YET]
    for machine, groups in results.items():
        parts.append(f"## {_name(groups[0])}\n")
        parts += [f"![{machine}]({name})\n" for name in plots.get(machine, ())]
        for group in groups:
            parts.append(f"### {group.op}, {group.title}\n\n{_everything(group)}")
    return "\n".join(parts)


def put(text: str, block: str) -> str:
    """`text` with `block` between the markers. Raises ValueError where a marker is missing."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md must hold {BEGIN} and, after it, {END}, once each")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{block}{END}{after}"


# ---- the short table -------------------------------------------------------------------------------------------------


def _summary(groups: Sequence[Group]) -> str:
    rates = {op: [group for group in groups if group.op == op and group.timed] for op in RATES}
    others = [group for group in groups if group.op not in RATES and _headline(group) and group.ours()]
    shown = [*(group for found in rates.values() for group in found), *others]
    if not shown:
        return ""
    parts = [f"**{_name(groups[0])}**\n"]
    parts += [_rates(RATES[op], found) for op, found in rates.items() if found]
    if others:
        parts.append(_ops(others))
    if any(group.disturbed for group in shown):
        parts.append("† other processes were running.\n")
    return "\n".join(parts)


def _headline(group: Group) -> bool:
    """Whether a case is one of those that the README shows."""
    if group.op != "select":
        return bool(group.label)
    row = group.rows[0]
    return row["shape"]["k"] == 64 and (row["data"] == "normal" or row["shape"]["F"] == 131072)


def _rates(what: str, groups: Sequence[Group]) -> str:
    """Tokens a second and memory of every implementation, a column for each shape."""
    names: list[str] = []
    for group in groups:
        names += [row["provider"] for row in group.timed if row["provider"] not in names]
    lines = [
        _line([what, *(f"{group.title}{_mark(group)}" for group in groups)]),
        _line(["---"] + ["---:"] * len(groups)),
    ]
    for name in names:
        cells = []
        for group in groups:
            row = next((row for row in group.timed if row["provider"] == name), None)
            cells.append(_rate(row, group) if row else "")
        shown = f"**{name}**" if name == "pullback" else name
        shown += " (the floor)" if any(r["provider"] == name and r["role"] == "floor" for r in groups[0].rows) else ""
        lines.append(_line([shown, *cells]))
    return "\n".join(lines) + "\n"


def _rate(row: Row, group: Group) -> str:
    ours = group.ours()
    speed = f"{row['notes']['tokens_per_s']:,.0f} tok/s"
    ratio = f" ({row['ms'] / ours['ms']:.2f}× our time)" if ours and row is not ours else ""
    memory = f", {row['peak_mb']:,.0f} MiB" if row["peak_mb"] is not None and row["role"] == "op" else ""
    return speed + ratio + memory


def _ops(groups: Sequence[Group]) -> str:
    lines = [
        _line(["op", "shape", "pullback, ms", "fastest other, ms", "ratio", "of the floor"]),
        _line(["---", "---", "---:", "---:", "---:", "---:"]),
    ]
    for group in groups:
        ours, other = group.ours(), group.best_other()
        assert ours is not None
        own = number(ours["ms"]) + ("" if ours["provider"] == "pullback" else f" ({ours['provider'][9:]})")
        theirs = f"{number(other['ms'])} ({other['provider']})" if other else ""
        ratio = f"{other['ms'] / ours['ms']:.2f}×" if other else ""
        lines.append(
            _line(
                [group.op, group.title + _mark(group), own, theirs, ratio, f"{100 * ours['fraction_of_floor']:.0f} %"]
            )
        )
    return "\n".join(lines) + "\n"


# ---- the page --------------------------------------------------------------------------------------------------------


def _everything(group: Group) -> str:
    on_cpu = group.run["device"] == "cpu"
    header = ["", "ms", "20–80 %", *(["CPU ms"] if on_cpu else []), "against us", "of the floor", "MiB", ""]
    lines = [_line(header), _line(["---"] + ["---:"] * (len(header) - 2) + ["---"])]
    ours = group.ours()
    for row in group.timed:
        ratio = "" if ours is None or row is ours else f"{row['ms'] / ours['ms']:.2f}×"
        spread = f"{number(row['ms_20'])}–{number(row['ms_80'])}"
        cpu = [number(row["cpu_ms"]) if row["cpu_ms"] is not None else ""] if on_cpu else []
        memory = "" if row["peak_mb"] is None else f"{row['peak_mb']:,.0f}"
        name = f"**{row['provider']}**" if is_ours(row) else row["provider"]
        share = f"{100 * row['fraction_of_floor']:.0f} %"
        lines.append(_line([name, number(row["ms"]), spread, *cpu, ratio, share, memory, _note(row)]))
    for row in group.rows:
        if row["status"] != "ok":
            empty = [""] * (len(header) - 2)
            lines.append(_line([row["provider"], *empty, f"{row['status']}: {row['reason']}".replace("|", "/")]))
    floor = f"Floor: {number(group.timed[0]['floor_ms'])} ms.{_mark(group)} " if group.timed else ""
    return "\n".join(lines) + f"\n\n{floor}{_provenance(group)}\n"


def _note(row: Row) -> str:
    notes = row["notes"]
    parts = ["a part that none can do without"] if row["role"] == "floor" else []
    if "tokens_per_s" in notes:
        parts.append(f"{notes['tokens_per_s']:,.0f} tok/s")
    if "rows_as_float64" in notes:
        parts.append(f"{100 * notes['rows_as_float64']:.0f} % of rows choose as float64")
    if "of_bare_pass" in notes:
        parts.append(f"{notes['of_bare_pass']:.2f} of the fastest pass with nothing recorded")
    if "fvu_last" in notes:
        first = f"{notes['fvu_first']:.2f} → " if "fvu_first" in notes else ""
        parts.append(f"FVU {first}{notes['fvu_last']:.2f} in {notes['steps']:.0f} steps")
    return ", ".join(parts)


def _provenance(group: Group) -> str:
    run, rates = group.run, group.run["ceilings"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
    where = f"{run['time'][:10]}, revision {run['revision']}, {run['threads']} threads on {run['cores']} cores"
    gemm = f"GEMM {rates['gemm_fp32']:,.0f} GFLOP/s in fp32 and {rates['gemm_bf16']:,.0f} in bf16"
    return f"{where}, {versions}; {gemm}, memory {rates['stream']:,.0f} GB/s."


# ---- small things ----------------------------------------------------------------------------------------------------


def number(ms: float) -> str:
    """Three significant digits."""
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}" if ms >= 1 else f"{ms:.3f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mark(group: Group) -> str:
    return " †" if group.disturbed else ""


def _name(group: Group) -> str:
    run = group.run
    return run["gpu"] or f"{run['cpu']}, {run['threads']} threads"
