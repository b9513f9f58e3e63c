"""`python -m bench.report`: bench/results -> the README's table, docs/BENCHMARKS.md and the plots in docs/bench.

Running it twice changes nothing. Without matplotlib the plots stay as they are.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from . import results, tables
from .environment import ROOT


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="folder of <machine>/*.jsonl")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README.md and docs/")
    options = parser.parse_args(arguments)
    try:
        changed = report(options.results, options.root)
    except ValueError as error:
        parser.error(str(error))
    print(f"written: {', '.join(changed)}" if changed else "everything is up to date")
    return 0


def report(folder: Path, root: Path) -> list[str]:
    """Bring README.md, docs/BENCHMARKS.md and the plots up to date; the texts that changed.

    Raises:
        ValueError: a results file that cannot be read, or a README without markers.
    """
    found = results.load(folder)
    pictures = root / "docs" / "bench"
    plots = _plots(found, pictures)
    readme = root / "README.md"
    texts = {
        readme: tables.put(readme.read_text(), tables.readme(found)),
        root / "docs" / "BENCHMARKS.md": tables.page(found, plots),
    }
    changed = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path])
    return [str(path.relative_to(root)) for path in changed]


def _plots(found: dict[str, list[results.Group]], folder: Path) -> dict[str, list[str]]:
    """The plots of each machine, as paths from docs/."""
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: the plots stay as they are", file=sys.stderr)
        return {m: [f"bench/{path.name}" for path in sorted(folder.glob(f"{m}-*.png"), reverse=True)] for m in found}
    from . import plots

    return {m: [f"bench/{name}" for name in plots.draw(m, groups, folder)] for m, groups in found.items()}


if __name__ == "__main__":
    sys.exit(main())
