"""What a rated sheet says of its two arms."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pullback.interpret.sheet.make import KEY
from pullback.interpret.sheet.statistics import difference, fisher_exact
from pullback.viz.sheet import RATINGS, RATINGS_FORMAT

Source = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A share of the first arm's rated features less that of the second's.

    Attributes:
        low, high: 95 % interval of the difference (Newcombe).
        p: that such shares differ by chance, two-sided (Fisher's exact test).
    """

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class SheetScore:
    """Ratings by arm.

    Attributes:
        counts: {arm: {rating: features, "unrated", "context_free"}}; context-free ones are counted whatever their
            rating.
        comparisons: {"interpretable", "interpretable or maybe", "context_free": first arm against second}; empty where
            an arm has no rating.
    """

    counts: dict[str, dict[str, int]]
    comparisons: dict[str, Comparison]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        columns = [*RATINGS, "unrated", "context_free"]
        lines = [f"{'':<20}" + "".join(f" {name.replace('_', '-'):>14}" for name in columns)]
        for arm, counts in self.counts.items():
            lines.append(f"{arm:<20}" + "".join(f" {counts[name]:>14}" for name in columns))
        first, *others = self.counts
        for what, c in self.comparisons.items():
            lines.append(
                f"{what.replace('_', '-')}: {first} less {others[0]} {c.difference:+.1%} "
                f"(95 % interval {c.low:+.1%} to {c.high:+.1%}), Fisher's p {c.p:.3g}"
            )
        return "\n".join(lines)


def score_sheet(ratings: Source, key: Source) -> SheetScore:
    """Count the ratings that a page of `make_sheet` saved, by the arms of its key.

    Args:
        ratings, key: files, or their content.

    Raises:
        ValueError: a file that is neither, or ratings of another sheet.
    """
    rated, answer = _read(ratings, "ratings", RATINGS_FORMAT), _read(key, "key", KEY)
    if rated["sheet"] != answer["sheet"] or len(rated["ratings"]) != len(answer["items"]):
        raise ValueError(f"score_sheet: ratings of sheet {rated['sheet']} and a key of sheet {answer['sheet']}")
    names = [*RATINGS, "unrated", "context_free"]
    counts = {arm: dict.fromkeys(names, 0) for arm in answer["arms"]}
    for own, item in zip(rated["ratings"], answer["items"], strict=True):
        rating = own.get("rating") or "unrated"
        if rating not in names[:-1]:
            raise ValueError(f"score_sheet: ratings are {', '.join(RATINGS)}, got {rating!r}")
        counts[item["arm"]][rating] += 1
        counts[item["arm"]]["context_free"] += rating != "unrated" and own.get("context_free") is True
    return SheetScore(counts, compared(counts))


def compared(counts: Mapping[str, Mapping[str, int]]) -> dict[str, Comparison]:
    """The comparisons that counts of two arms allow."""
    first, second = counts.values()
    n, m = (sum(own[name] for name in RATINGS) for own in (first, second))
    if n == 0 or m == 0:
        return {}
    found = {}
    for what, names in {
        "interpretable": RATINGS[:1],
        "interpretable or maybe": RATINGS[:2],
        "context_free": ("context_free",),
    }.items():
        a, b = (sum(own[name] for name in names) for own in (first, second))
        found[what] = Comparison(*difference(a, n, b, m), fisher_exact(a, n, b, m))
    return found


def _read(source: Source, what: str, form: str) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        content: Any = source
    else:
        try:
            content = json.loads(Path(source).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"score_sheet: {source} is no JSON: {error}") from error
    if not isinstance(content, Mapping) or content.get("format") != form:
        raise ValueError(f"score_sheet: the {what} must be a file of format {form!r}; are ratings and key exchanged?")
    return content
