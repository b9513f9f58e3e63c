"""Check what `pullback demo` wrote: the figures its report must hold, and the page in a real browser.

python -m tools.check_demo demo-out
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.browser import FLAGS, binary


def shortfalls(report: dict) -> list[str]:
    """Sentences for figures that miss their bound."""
    graph, swaps = report["graph"], report["interchange"]
    bounds = [
        ("worst FVU", max(report["fvu"]), "<=", 0.15),
        ("worst dead share", max(report["dead"]), "<=", 0.05),
        ("graph check", graph["check_max_error"], "<=", 1e-4),
        ("pairs", swaps["pairs"], ">=", 200),
        ("state features swapped", swaps["success_rate"], ">=", 0.95),
        ("all others swapped", swaps["complement_rate"], "<=", 0.05),
        ("same state kept", swaps["same_state_rate"], ">=", 0.98),
        ("top 16 swapped", swaps["top_rate"], ">=", 0.95),
        ("random 16 swapped", swaps["random_rate"], "<=", 0.05),
        ("single swap flipped", float(report["intervention"]["flipped"]), ">=", 1.0),
    ]
    holds = {"<=": lambda a, b: a <= b, ">=": lambda a, b: a >= b}
    return [
        f"{name}: {value:.4g}, must be {sign} {bound}"
        for name, value, sign, bound in bounds
        if not holds[sign](value, bound)
    ]


def rendered(page: Path) -> str:
    """The page's document after its scripts have run."""
    browser = binary()
    if browser is None:
        raise SystemExit("no Chromium found: install it, for example with apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            *FLAGS,
            "--virtual-time-budget=5000",
            f"--user-data-dir={profile}",
            "--dump-dom",
            page.resolve().as_uri(),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def main(folder: str) -> int:
    out = Path(folder)
    missed = shortfalls(json.loads((out / "report.json").read_text()))
    if 'class="node logit' not in rendered(out / "graph.html"):
        missed.append("graph.html draws no logit node in the browser")
    print("\n".join(missed) or "the demo's report and page hold")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "demo-out"))
