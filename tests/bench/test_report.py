"""The report: the README says what the committed results say, writing it twice changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import report, results, rows, tables

from .made_up import RUN, absent, step, timed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(f"# x\n\n{tables.BEGIN}\nold\n{tables.END}\n\nrest\n")
    rows.write(
        tmp_path / "results" / "made-up" / "2026-01-02-peers.jsonl",
        [
            RUN,
            timed("pullback", 2.0),
            timed("pullback-avx2", 1.9),
            timed("torch", 3.0, disturbed=True),
            timed("GEMM alone", 1.1, role="floor"),
            absent("sparsify", "sparsify is not there"),
            step("pullback", 10.0),
            step("sparsify", 25.0),
            step("GEMM bf16 + Adam", 5.0, role="floor"),
        ],
    )
    return tmp_path


def test_the_readme_table_is_what_the_committed_results_generate() -> None:
    text = (ROOT / "README.md").read_text()
    assert tables.put(text, tables.readme(results.load())) == text


def test_the_page_is_what_the_committed_results_generate() -> None:
    found = results.load()
    pictures = ROOT / "docs" / "bench"
    plots = {m: [f"bench/{p.name}" for p in sorted(pictures.glob(f"{m}-*.png"), reverse=True)] for m in found}
    assert tables.page(found, plots) == (ROOT / "docs" / "BENCHMARKS.md").read_text()


def test_twice_is_once(home: Path) -> None:
    assert report.report(home / "results", home) == ["README.md", "docs/BENCHMARKS.md"]
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert report.report(home / "results", home) == []
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_what_the_tables_say(home: Path) -> None:
    report.report(home / "results", home)
    readme = (home / "README.md").read_text()
    assert "| decode | A: N=2 d=3 F=4 k=1 † | 2.00 | 3.00 (torch) | 1.50× | 50 % |" in readme
    assert "| **pullback** | 200 tok/s, 100 MiB |" in readme
    assert "| sparsify | 80 tok/s (2.50× our time), 100 MiB |" in readme
    assert "| GEMM bf16 + Adam (the floor) | 400 tok/s (0.50× our time) |" in readme
    assert readme.startswith("# x\n")
    assert readme.endswith("\n\nrest\n")
    page = (home / "docs" / "BENCHMARKS.md").read_text()
    assert "absent: sparsify is not there" in page
    assert "revision abc, 2 threads on 2 cores" in page


def test_the_newest_measurement_of_a_case_counts(home: Path) -> None:
    later = RUN | {"time": "2026-02-02T03:04:05+00:00", "suite": "quick"}
    rows.write(home / "results" / "made-up" / "0-quick.jsonl", [later, timed("pullback", 1.0)])
    rows.write(home / "results" / "made-up" / "2026-03-03-tiny.jsonl", [later | {"suite": "tiny"}, timed("torch", 9.0)])
    (groups,) = results.load(home / "results").values()
    assert [group.op for group in groups] == ["step", "decode"]
    assert [row["provider"] for row in groups[1].rows] == ["pullback"]
    assert groups[0].run == RUN


def test_without_results_it_says_how_to_get_some(tmp_path: Path) -> None:
    assert "make bench" in tables.readme(results.load(tmp_path))


def test_without_matplotlib_the_tables_are_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda _: None)
    assert report.report(home / "results", home)


def test_plots_are_drawn_the_same_each_time(home: Path) -> None:
    pytest.importorskip("matplotlib")
    report.report(home / "results", home)
    drawn = {path.name: path.read_bytes() for path in (home / "docs" / "bench").iterdir()}
    assert sorted(drawn) == ["made-up-ops.png", "made-up-step.png"]


@pytest.mark.parametrize("text", ["no markers", f"{tables.END} {tables.BEGIN}", f"{tables.BEGIN} only"])
def test_a_readme_without_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        tables.put(text, "x\n")


def test_a_damaged_file_is_a_sentence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "results" / "made-up" / "b.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit):
        report.main(["--results", str(home / "results"), "--root", str(home)])
    assert "b.jsonl, line 1" in capsys.readouterr().err


def test_the_harness_itself_needs_no_matplotlib_and_no_transformer_lens() -> None:
    import subprocess

    script = "import sys, bench.__main__; print([m for m in ('matplotlib', 'transformer_lens') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
