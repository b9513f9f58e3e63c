"""A report as one HTML page that needs nothing but a browser: sections of text, tables, lines and tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .document import escaped, still

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 250, 46, 10, 12, 36
SERIES = 6  # colours of the style


def report_page(report: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        report: title, lead, note, and `sections`, each with a title and `parts` in order:
            {"text"}: a paragraph; {"heading"}: of what follows;
            {"table": rows, "columns": names}: cells are text or numbers, or {"value", "good"};
            {"charts": [{"title", "x", "y", "series": [{"name", "x", "y", "dashed"}], "log"}]}: lines, side by side;
            {"tokens": [(token, share)]}: tokens, shaded by their share.
    """
    body = [f"<h1>{_text(report['title'])}</h1>", f'<p class="lead">{_text(report["lead"])}</p>']
    if report.get("note"):
        body.append(f'<p class="soft">{_text(report["note"])}</p>')
    for section in report["sections"]:
        body.append(f"<section><h2>{_text(section['title'])}</h2>")
        body += [_part(part) for part in section["parts"]]
        body.append("</section>")
    return still("\n".join(body) + "\n", report["title"], styles=("base.css", "report.css"))


def _text(value: Any) -> str:
    return escaped(str(value))


def _part(part: Mapping[str, Any]) -> str:
    if "text" in part:
        return f"<p>{_text(part['text'])}</p>"
    if "heading" in part:
        return f"<h3>{_text(part['heading'])}</h3>"
    if "table" in part:
        return _table(part["columns"], part["table"])
    if "tokens" in part:
        return _tokens(part["tokens"])
    return f'<div class="charts">{"".join(_chart(chart) for chart in part["charts"])}</div>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    numeric = [bool(rows) and all(_is_number(row[n]) for row in rows) for n in range(len(columns))]
    head = "".join(f"<th{_number(flag)}>{_text(name)}</th>" for name, flag in zip(columns, numeric, strict=True))
    body = "".join(
        f"<tr>{''.join(_cell(cell, flag) for cell, flag in zip(row, numeric, strict=True))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) or cell is None


def _number(flag: bool) -> str:
    return ' class="number"' if flag else ""


def _cell(cell: Any, numeric: bool) -> str:
    if isinstance(cell, Mapping):
        return f'<td class="{"good" if cell["good"] else "bad"}">{_text(cell["value"])}</td>'
    shown = "" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell)
    return f"<td{_number(numeric)}>{_text(shown)}</td>"


def _tokens(tokens: Sequence[tuple[str, float]]) -> str:
    largest = max((abs(share) for _, share in tokens), default=0) or 1
    spans = []
    for token, share in tokens:
        strength = round(45 * abs(share) / largest)
        colour = "var(--s0)" if share >= 0 else "var(--s1)"
        spans.append(
            f'<span style="background:color-mix(in srgb, {colour} {strength}%, transparent)">'
            f"{_text(token)}<i>{f'{share:+.0%}' if abs(share) >= 0.005 else '0%'}</i></span>"
        )
    return f'<p class="tokens">{"".join(spans)}</p>'


# Charts ---------------------------------------------------------------------------------------------------------------


def _chart(chart: Mapping[str, Any]) -> str:
    """Lines over one pair of axes. Points without a finite value are left out."""
    log = bool(chart.get("log"))
    series = [{**one, "points": _points(one, log)} for one in chart["series"]]
    points = [point for one in series for point in one["points"]]
    if not points:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    ticks = _ticks(min(ys), max(ys))
    y_low, y_high = ticks[0], ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        right, down = (x - x_low) / (x_high - x_low), (y_high - y) / (y_high - y_low)
        return LEFT + right * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - BOTTOM)

    marks = []
    for y in ticks:
        _, down = at(x_low, y)
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{y:.6g}</text>')
    for x in _log_ticks(x_low, x_high) if log else _ticks(x_low, x_high):
        if x_low - 1e-9 <= x <= x_high + 1e-9:
            shown = f"{10**x:.3g}" if log else f"{x:.6g}"
            marks.append(f'<text x="{at(x, y_low)[0]:.1f}" y="{HEIGHT - 19}" text-anchor="middle">{shown}</text>')
    marks.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{_text(chart["x"])}</text>')
    for n, one in enumerate(series):
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in (at(*point) for point in one["points"]))
        marks.append(f'<polyline class="{_class(n, one)}" points="{line}"/>')
    label = f"{chart['title']}: {chart['y']} over {chart['x']}"
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(label)}">{"".join(marks)}</svg>'
    legend = "".join(
        f'<li><svg viewBox="0 0 20 8" aria-hidden="true"><polyline class="{_class(n, one)}" points="0,4 20,4"/></svg>'
        f"{_text(one['name'])}</li>"
        for n, one in enumerate(series)
    )
    return (
        f"<figure><h3>{_text(chart['title'])}</h3><figcaption>{_text(chart['y'])}</figcaption>{picture}"
        f'<ul class="legend">{legend}</ul></figure>'
    )


def _class(n: int, series: Mapping[str, Any]) -> str:
    return f"s s{n % SERIES}{' dashed' if series.get('dashed') else ''}"


def _points(series: Mapping[str, Any], log: bool) -> list[tuple[float, float]]:
    pairs = ((x, y) for x, y in zip(series["x"], series["y"], strict=True) if x > 0 or not log)
    placed = ((math.log10(x) if log else float(x), y) for x, y in pairs)
    return [(x, y) for x, y in placed if y is not None and math.isfinite(y)]


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that reach from below `low` to above `high`."""
    span = high - low or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(span / 4))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if span / (unit * m) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * n for n in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of 1, 2 and 5 times powers of ten; over more than two decades, of powers of ten alone."""
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    return [n + math.log10(step) for n in decades for step in steps]
