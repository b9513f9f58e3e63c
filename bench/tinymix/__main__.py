"""`python -m bench.tinymix`: bench/results/tinymix -> docs/TINYMIX_REPORT.md and its plot. With --measure, train and
measure first; what was finished before is not done again."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pullback.viz import pareto

from ..environment import ROOT
from . import across, measure, report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tinymix", description=(__doc__ or "").split(". ")[0])
    parser.add_argument("--measure", action="store_true", help="train and measure first: half an hour on two cores")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(measure.SEEDS), help="seeds to measure")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tinymix", help="folder of sets and activations")
    options = parser.parse_args(arguments)
    if options.measure:
        for seed in options.seeds:
            measure.transcoders_and_autoencoders(options.work, seed)
        report.collect(options.work)
        across.measure(options.work, report.RESULTS / report.CROSS_LAYER)
    report.PAGE.write_text(report.page())
    if pareto.can_draw():
        content = json.loads((report.RESULTS / report.SWEEP).read_text())
        pareto.draw(content, report.PAGE.parent / report.PLOT)
    else:
        print(f"the plot stays as it is: {pareto.NEEDED}", file=sys.stderr)
    print(f"wrote {report.PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
