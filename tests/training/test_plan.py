"""The formulas of a run's costs against runs, and the page that is made of them."""

from __future__ import annotations

import sys

import pytest
import torch
from tools import scale

from pullback.cli import main
from pullback.training import TrainConfig
from pullback.training.plan import Dictionary, costs
from pullback.training.runs import new_run


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_peak_memory_of_a_run():
    peak, said = scale.measured(*scale.MEASURED[-1])
    assert said.memory < peak < 1.15 * said.memory


def test_a_run_takes_what_the_plan_says():
    widths, config = {0: (8, 8), 1: (8, 8)}, TrainConfig(d_sae=64, k=4)
    run = new_run(config, widths, torch.device("cpu"), {})
    assert run.memory == pytest.approx(costs(Dictionary(2, 8, 64, 4)).trained)


def test_work_is_divided():
    """What all processes hold and do is what one does, whatever the division."""
    for cross_layer in (False, True):
        dictionary = Dictionary(12, 64, 1024, 8, cross_layer)
        alone = costs(dictionary, 1e6)
        for parallel in ("layers", "features", (2, 2)):
            each = costs(dictionary, 1e6, processes=4, parallel=parallel)
            assert 4 * each.trained == pytest.approx(alone.trained)
            assert 4 * each.flops == pytest.approx(alone.flops)
            assert 4 * each.traffic == pytest.approx(alone.traffic)
    assert costs(dictionary, processes=4, parallel="data").trained == alone.trained


def test_the_page_has_the_tables_of_the_formulas():
    page = scale.PAGE.read_text(encoding="utf-8")
    assert scale.written(page) == page, "run `python tools/scale.py --write`"


def test_the_command_says_what_a_run_takes(capsys):
    sizes = ["--d-sae", "131072", "--processes", "8", "--training-tokens", "1000000000"]
    assert main(["plan", "llama-3.1-8b", *sizes, "--train-batch-size-tokens", "4096"]) == 0
    said = capsys.readouterr().out
    assert "55.8 GB of weights and moments" in said
    assert "at least 5" in said
    assert main(["plan", "--n-layers", "2", "--d-model", "8", "--parameters", "1000", "--parallel", "2x3"]) == 0
    capsys.readouterr()
    cross_layer = ["plan", "gpt2-small", "--cross-layer", "--processes", "4"]
    assert main(cross_layer) == main([*cross_layer, "--parallel", "features"]) == 0
    first, second = capsys.readouterr().out.split("weights: ")[1:]
    assert first == second
    assert main([*cross_layer, "--parallel", "layers"]) != 0
    assert "have common residuals in every step" in capsys.readouterr().err
    assert main(["plan", "gpt2-small", "--parallel", "2x3", "--processes", "5"]) != 0
    assert "2x3 is for 6 processes, --processes says 5" in capsys.readouterr().err


def test_more_processes_than_layers_share_features_as_they_do_in_a_run(capsys):
    many = ["plan", "gpt2-small", "--processes", "16"]
    assert main(many) == main([*many, "--parallel", "features"]) == 0
    first, second = capsys.readouterr().out.split("weights: ")[1:]
    assert first == second


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--processes", "0"], "--processes must be positive, got 0"),
        (["--processes", "16", "--parallel", "layers"], "12 layers cannot be divided among 16 processes"),
        (["--parallel", "16x1"], "12 layers cannot be divided among 16 processes"),
        (["--processes", "2", "--parallel", "none"], "a whole run in each process"),
        (["--train-batch-size-tokens", "0"], "train_batch_size_tokens must be at least 1, got 0"),
        (["--training-tokens", "-5"], "training_tokens must be at least 1, got -5"),
    ],
)
def test_what_no_run_takes_is_refused(capsys, options, sentence):
    assert main(["plan", "gpt2-small", *options]) != 0
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("size", ["--n-layers", "--d-model", "--parameters"])
def test_sizes_of_a_model_are_positive(capsys, size):
    sizes = {"--n-layers": "2", "--d-model": "8", "--parameters": "1e6"} | {size: "-3"}
    assert main(["plan", *(part for pair in sizes.items() for part in pair)]) != 0
    assert f"{size} must be positive, got -3" in capsys.readouterr().err
