"""Options of commands that explain one thing, and write it as a page and as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pullback.attribution import FeatureTarget

WRITERS = {".html": "to_html", ".json": "to_json"}
PLACE = ("LAYER", "POSITION", "FEATURE")


def add_target(parser: argparse.ArgumentParser, name: str, says: Sequence[str]) -> None:
    """--NAME, --NAME-difference and --NAME-feature, one of which may be given; `says` is their help."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(f"--{name}", metavar="TOKEN", help=f"{says[0]} (default: the likeliest)")
    group.add_argument(f"--{name}-difference", nargs=2, metavar="TOKEN", help=says[1])
    group.add_argument(f"--{name}-feature", nargs=3, metavar=PLACE, help=says[2])


def target_of(args: argparse.Namespace, name: str) -> Any:
    """As `attribute` takes it: a token, a difference or a feature; None where nothing was named."""
    from pullback.attribution import LogitDifference

    token, difference, feature = (getattr(args, f"{name}{form}") for form in ("", "_difference", "_feature"))
    if feature:
        return feature_target(f"--{name}-feature", feature)
    return LogitDifference(tuple(difference)) if difference else token


def feature_target(option: str, place: Sequence[str]) -> FeatureTarget:
    """Of the words of `PLACE`; A1 for a layer is the attention of layer 1, as graphs name its features."""
    from pullback.attribution import FeatureTarget

    attention = place[0].startswith("A")
    try:
        layer, position, feature = map(int, (place[0].removeprefix("A"), *place[1:]))
    except ValueError as error:
        raise ValueError(
            f"{option} takes {' '.join(PLACE)}, three integers (A1 for the attention of layer 1), got {' '.join(place)}"
        ) from error
    return FeatureTarget(layer, position, feature, attention=attention)


def must_have_writers(outs: Sequence[Path]) -> None:
    for out in outs:
        if out.suffix not in WRITERS or out.is_dir():
            raise ValueError(f"--out takes files that end in {' and '.join(WRITERS)}, got '{out}'")


def write(what: Any, outs: Sequence[Path]) -> None:
    for out in outs:
        getattr(what, WRITERS[out.suffix])(out)
        print(f"wrote {out}")
