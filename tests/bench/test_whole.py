"""Whole runs: everyone gets the same model and tokens, what does not learn or is missing is said, a run end to end."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import rows, run
from bench.roofline import Ceilings, cost
from bench.whole import __main__ as command
from bench.whole import cases, harvest, twin, worker
from pullback import zoo

ROOT = Path(__file__).parents[2]
TINY, GPT2 = cases.CASES["smoke"]
SETTINGS = run.Settings(torch.device("cpu"), Ceilings(100.0, 200.0, 20.0), 0.01, 1, 1)
ABOUT = {"load": 0.0, "others": 0.0, "disturbed": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    cases.prepare(TINY, made)
    return made


def test_the_twin_is_tiny_mix(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    prompts = twin.tokens(3, 20)
    theirs = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert (theirs(prompts).logits - zoo.load("tiny-mix")(prompts)).abs().max() < twin.TOLERANCE


def test_a_twin_that_is_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin, "_halves", lambda rows, shape: rows.unflatten(0, (shape.n_heads, shape.d_head)))
    with pytest.raises(ValueError, match="is .* off"):
        twin.save(tmp_path)


def test_a_case_comes_back_with_its_tokens(folder: Path) -> None:
    case, tokens = cases.load(folder)
    assert case == TINY
    assert list(tokens.shape) == [TINY.steps * TINY.prompts, TINY.shape["T"]]
    assert tokens.numel() == TINY.steps * TINY.shape["N"]


def test_our_run_trains_on_every_token_once(folder: Path) -> None:
    said = worker.main("pullback", folder, torch.get_num_threads())
    assert said["status"] == "ok", said
    assert len(said["fvu"]) == TINY.shape["L"]
    assert max(said["fvu"]) < 1
    assert said["wall"] > 0
    assert said["versions"]["torch"] == torch.__version__


def test_harvest_is_checked_against_torchs_own_hooks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = harvest.rows(folder, SETTINGS)
    for row in found:
        rows.check(row)
    ours = found[0]
    assert [row["provider"] for row in found] == ["pullback", "TransformerLens", "transformers"]
    assert ours["error"] < 1
    assert ours["notes"]["of_bare_pass"] == pytest.approx(ours["ms"] / min(row["ms"] for row in found[1:]))
    recorded = harvest._recorded
    monkeypatch.setattr(harvest, "_recorded", lambda *given: [1.01 * t for t in recorded(*given)])
    assert harvest.rows(folder, SETTINGS)[0]["status"] == "refused"


def row(name: str, *answers: dict[str, Any]) -> dict[str, Any]:
    made = command._row(TINY, name, list(answers), ABOUT, SETTINGS)
    rows.check(made)
    return made


def answer(fvu: float, wall: float = 2.0) -> dict[str, Any]:
    return {"status": "ok", "wall": wall, "cpu": 2 * wall, "peak_mb": 3.0, "fvu": [fvu, fvu], "versions": {}}


def test_what_a_row_says() -> None:
    made = row("pullback", answer(0.5, 2.0), answer(0.5, 4.0))
    assert made["ms"] == pytest.approx(3000 / TINY.steps)
    assert made["cpu_ms"] == pytest.approx(6000 / TINY.steps)
    assert made["notes"]["tokens_per_s"] == pytest.approx(TINY.steps * TINY.shape["N"] / 3)
    assert made["notes"]["fvu_last"] == 0.5


@pytest.mark.parametrize("fvu", [1.0, float("nan")])
def test_a_run_that_does_not_learn_is_refused(fvu: float) -> None:
    assert row("sparsify", answer(fvu))["status"] == "refused"


def test_a_library_that_is_not_there_is_named(folder: Path) -> None:
    options = argparse.Namespace(python=Path("no/such/python"), rounds=1)
    said = command._one_run("sparsify", options.python, folder, 1)
    assert said["status"] == "absent"
    assert row("sparsify", said)["reason"].startswith("eai-sparsify is not there")


def test_a_whole_run_has_a_step_for_every_layer() -> None:
    steps = sum(phase.bytes for phase in cost("step", TINY.shape))
    model = sum(phase.bytes for phase in cost("harvest", TINY.shape))
    assert sum(phase.bytes for phase in cost("train", TINY.shape)) == TINY.shape["L"] * steps + model
    assert cost("harvest", TINY.shape)[0].flops == 2 * 12 * 128**2 * TINY.shape["N"] * TINY.shape["L"]


def test_end_to_end(tmp_path: Path) -> None:
    arguments = ["--smoke", "--threads", "1", "--cases", GPT2.name, "--python", "no/such/python"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.whole", *arguments, "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    header, found = rows.read(Path(done.stdout.strip()))
    assert header["suite"] == "tiny"
    assert {(one["op"], one["provider"]): one["status"] for one in found} == {
        ("harvest", "pullback"): "ok",
        ("harvest", "TransformerLens"): "ok",
        ("harvest", "transformers"): "ok",
        ("train", "pullback"): "ok",
        ("train", "sparsify"): "absent",
    }
    assert json.dumps(found)


def test_wrong_arguments_give_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in (
        (["--cases", "x"], "no case 'x'; choose from tiny-mix"),
        (["--threads", "0"], "at least 1"),
    ):
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert sentence in capsys.readouterr().err
