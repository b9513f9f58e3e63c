"""The command line as a newcomer types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pullback import cli
from pullback.attribution import Graph
from pullback.attribution.nodes import ERROR
from pullback.commands import train_options
from pullback.transcoders import load_transcoders

PROMPT = "the capital of the state containing dallas is"


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    script = "import sys\nfrom pullback import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    script += "assert not {'torch', 'numpy', 'transformers', 'transformer_lens'} & set(sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    commands = ("demo", "train", "plan", "cache", "sweep", "eval", "graph", "convert", "doctor")
    assert all(command in out for command in commands)


@pytest.mark.parametrize(
    "command", ["demo", "train", "plan", "cache", "sweep", "eval", "graph", "hierarchical", "convert", "doctor"]
)
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "default: None" not in said
    bare = re.findall(r"^  (--[a-z-]+ [A-Z_]+)\n(?! {10})", said, flags=re.M)
    assert not bare, f"options without a word of help: {bare}"


def test_doctor_says_which_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    from pullback import ops

    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert ops.isa() in said
    assert "torch" in said


def test_graph_writes_each_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("g.html", "g.json", "g.safetensors"):
        assert cli.main(["graph", "tiny-mix", PROMPT, "--out", str(tmp_path / name)]) == 0
    said = capsys.readouterr().out
    assert "every target sums to" in said
    assert "answer: 'austin' 100.0%" in said
    assert json.loads((tmp_path / "g.json").read_text())["metadata"]["prompt"] == PROMPT
    whole = Graph.load(tmp_path / "g.safetensors")
    assert whole.check() <= 1e-4
    assert bool(whole.of_kind(ERROR).any()), "the file keeps what the page leaves out"
    assert "austin" in (tmp_path / "g.html").read_text()


def test_graph_of_what_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "g.safetensors")
    asked = ["--target", "austin", "--target-difference", "austin", "sacramento", "--target-feature", "1", "-1", "5"]
    asked += ["--target-feature", "A2", "-1", "7", "--attention-saes", "zoo"]
    rules = ["--position", "-1", "--edges-per-target", "20", "--edge-mass", "0.9", "--precision", "bfloat16"]
    assert cli.main(["graph", "tiny-mix", PROMPT, "--out", out, *asked, *rules]) == 0
    said = capsys.readouterr().out
    assert "explained: austin - sacramento = " in said
    assert f"explained: feature 1_5_{len(PROMPT.split())} = " in said
    assert f"explained: feature A2_7_{len(PROMPT.split())} = " in said
    graph = Graph.load(out)
    assert int(graph.explained.sum()) == 4
    assert int(graph.indptr.diff().max()) <= 21
    assert graph.meta["generation_settings"]["precision"] == "bfloat16"
    assert cli.main(["graph", "tiny-mix", PROMPT, "--out", out, "--chat"]) == 2
    assert "has no chat template" in capsys.readouterr().err
    assert cli.main(["graph", "tiny-mix", PROMPT, "--out", out, "--target", "the capital"]) == 2
    assert "the target 'the capital' is 2 tokens" in capsys.readouterr().err


def test_train_then_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "prompts.txt"
    data.write_text(f"{PROMPT}\ndallas is in\nthe capital of texas is\n")
    arguments = ["--d-sae", "64", "--k", "4", "--training-tokens", "300", "--train-batch-size-tokens", "50"]
    out = tmp_path / "set"
    where = ["--data", str(data), "--out", str(out)]
    assert cli.main(["train", "tiny-mix", *where, "--layers", "0", "2", *arguments]) == 0
    figures = tmp_path / "eval.json"
    again = ["train", "tiny-mix", "--data", str(data), "--out", str(out)]
    assert cli.main(again) == 2
    assert "holds transcoders already" in capsys.readouterr().err
    evaluate = ["eval", "tiny-mix", "--transcoders", str(out), "--data", str(data), "--json", str(figures)]
    assert cli.main(evaluate) == 0
    assert "CE recovered" in capsys.readouterr().out
    assert set(json.loads(figures.read_text())["fvu"]) == {"0", "2"}
    read = figures.read_text()
    documents = tmp_path / "documents.jsonl"
    documents.write_text(json.dumps({"said": "dallas is in"}) + "\n")
    assert cli.main([*evaluate[:-3], str(documents), "--column", "said", "--context-size", "4"]) == 0
    assert "(3 tokens)" in capsys.readouterr().out
    assert cli.main([*evaluate, "--lazy"]) == 0
    assert figures.read_text() == read
    assert cli.main(["graph", "tiny-mix", PROMPT, "--out", str(tmp_path / "g.json"), "--lazy"]) == 2
    assert "--lazy is for the files of --transcoders" in capsys.readouterr().err


def test_a_cross_layer_transcoder_is_trained_measured_and_explained(tmp_path: Path) -> None:
    data, out = tmp_path / "prompts.txt", tmp_path / "clt"
    data.write_text(f"{PROMPT}\ndallas is in\nthe capital of texas is\n")
    arguments = ["--d-sae", "64", "--k", "4", "--training-tokens", "300", "--train-batch-size-tokens", "50"]
    where = ["--data", str(data), "--out", str(out), "--cross-layer", "--decoder-tying", "per_source"]
    assert cli.main(["train", "tiny-mix", *where, *arguments]) == 0
    assert (out / "W_dec_3.safetensors").is_file()
    assert cli.main(["eval", "tiny-mix", "--transcoders", str(out), "--data", str(data)]) == 0
    assert cli.main(["graph", "tiny-mix", PROMPT, "--transcoders", str(out), "--out", str(tmp_path / "g.html")]) == 0


def test_sweep_then_eval_two_of_its_arms_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "prompts.txt", tmp_path / "sweep"
    data.write_text(f"{PROMPT}\ndallas is in\nthe capital of texas is\n")
    sizes = ["--d-sae", "16", "--training-tokens", "100", "--train-batch-size-tokens", "25", "--layers", "1", "2"]
    grid = ["--k", "2", "4", "--seeds", "0", "1", "--eval-prompts", "2"]
    assert cli.main(["sweep", "tiny-mix", "--data", str(data), "--out", str(out), *sizes, *grid]) == 0
    said = capsys.readouterr().out
    assert "transcoder-topk-k2-seed0" in said
    assert re.search(r"topk, transcoder less sae at L0 2.0 to 4.0: ce_recovered .* \(std over seeds .*\), kl ", said)
    content = json.loads((out / "sweep.json").read_text())
    assert len(content["arms"]) == 8
    assert content["evaluation"]["tokens"]["prompts"] == 2
    arms = [str(out / "sets" / f"{kind}-topk-k4-seed1") for kind in ("transcoder", "sae")]
    beside = ["eval", "tiny-mix", "--transcoders", arms[0], "--compare", arms[1], "--data", str(data), "--per-layer"]
    assert cli.main([*beside, "--json", str(tmp_path / "eval.json")]) == 0
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert set(figures["alone"]) == set(figures["compared"][arms[1]]["alone"]) == {"1", "2"}


def test_cache_then_train_on_it_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The data may be gone by then; the second time, from a checkpoint."""
    data, cache = tmp_path / "documents.jsonl", tmp_path / "cache"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in (PROMPT, "dallas is in") * 20))
    where = ["--data", str(data), "--context-size", "16", "--layers", "1"]
    assert cli.main(["cache", "tiny-mix", *where, "--out", str(cache), "--cache-dtype", "bfloat16"]) == 0
    data.unlink()
    sizes = ["--d-sae", "64", "--k", "4", "--training-tokens", "600", "--train-batch-size-tokens", "50"]
    train = ["train", "tiny-mix", "--cache", str(cache), "--checkpoint", str(tmp_path / "ck"), *sizes]
    assert cli.main([*train, "--out", str(tmp_path / "a")]) == 0
    assert cli.main([*train, "--out", str(tmp_path / "b")]) == 2
    assert "give resume=True" in capsys.readouterr().err
    assert cli.main([*train, "--out", str(tmp_path / "b"), "--resume"]) == 0
    assert "going on after 600 tokens" in capsys.readouterr().out
    one, other = (tmp_path / name / "layer_1.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["graph", "tiny-mix", " ", "--out", "g.html"], "prompt is empty"),
        (["graph", "tiny-mix", "the capital of atlantis is", "--out", "g.html"], "atlantis"),
        (["graph", "tiny-mix", "the " * 60, "--out", "g.html"], "reads at most 48"),
        (["graph", "tiny-mix", PROMPT, "--out", "g.pdf"], "--out must end in"),
        (["graph", "tiny-mix", PROMPT, "--out", "g.html", "--node-threshold", "7"], "--node-threshold must lie in"),
        (["graph", "tiny-mix", PROMPT, "--out", "g.html", "--transcoders", "nowhere"], "nowhere"),
        (["graph", "no/such-model", PROMPT, "--out", "g.html", "--transcoders", "x"], "no model 'no/such-model'"),
        (["graph", "folder.html", PROMPT, "--out", "g.html", "--transcoders", "x"], "model in 'folder.html' cannot be"),
        (["eval", "tiny-mix", "--data", "nowhere.txt"], "nowhere.txt"),
        (["demo", "--city", "atlantis", "--shipped", "--out", "d"], "does not know the city"),
        (["graph", "tiny-mix", PROMPT, "--out", "folder.html"], "--out names a folder"),
        (["eval", "tiny-mix", "--data", "folder.html"], "Is a directory"),
        (["train", "tiny-mix", "--out", "o"], "--data FILE is needed"),
        (["train", "tiny-mix", "--out", "o", "--parallel", "wide"], "parallel must be one of none, layers"),
        (["plan", "--d-sae", "8"], "name one of gpt2-small"),
        (["graph", "tiny-mix", PROMPT, "--out", "g.safetensors", "--node-threshold", "0.5"], "keeps the whole graph"),
        (["graph", "tiny-mix", "--prompts", "p.txt", "--out", "o", "--edge-threshold", "1"], "whole without --prune"),
        (["graph", "tiny-mix", PROMPT, "--out", "g.html", "--num-shards", "2"], "are for --prompts FILE"),
        (
            ["graph", "tiny-mix", PROMPT, "--out", "g.html", "--target-feature", "1", "8", "3", "--position", "2"],
            "--position is of logits",
        ),
        (["paths", "tiny-mix", PROMPT, "--root-feature", "1", "8", "3", "--position", "2"], "--position is of logits"),
        (["intervene", "tiny-mix", PROMPT, "--generate", "2"], "name features to set"),
        (["graph", "tiny-mix", PROMPT, "--out", "p.txt/g.html"], "p.txt/g.html: Not a directory"),
        (["eval", "tiny-mix", "--data", "p.txt", "--json", "p.txt/e.json"], "p.txt/e.json: Not a directory"),
        (["features", "tiny-mix", "--data", "p.txt", "--out", "p.txt"], "--out takes a folder, and p.txt is a file"),
        (["intervene", "tiny-mix", PROMPT, "--set", "1_524_8=0", "--top", "0"], "--top must be at least 1"),
        (["study", "ioi", "--n", "0", "--out", "o"], "n must be at least 1, got 0"),
        (
            ["sweep", "tiny-mix", "--data", "p.txt", "--out", "o", "--k", "4", "--l1-coefficient", "1"],
            "none of topk has l1_coefficient",
        ),
        (["demo", "--shipped", "--steps", "5"], "leave out --steps, or --shipped"),
        (["plan", "gpt2-small", "--d-model", "8"], "are known of gpt2-small: leave them out"),
        (["train", "tiny-mix", "--data", "p.txt", "--out", "o", "--cache-dtype", "int8"], "of the cache that --cache"),
        (
            ["train", "tiny-mix", "--data", "p.txt", "--out", "o", "--checkpoint-every-tokens", "9"],
            "needs --checkpoint",
        ),
        (
            ["train", "tiny-mix", "--data", "p.txt", "--out", "o", "--l1-coefficient", "1"],
            "l1_coefficient is a penalty",
        ),
        (["train", "tiny-mix", "--out", "o", "--resume"], "--resume needs --checkpoint"),
        (["cache", "tiny-mix", "--data", "nowhere.npy", "--out", "o"], "no file nowhere.npy"),
        (["cache", "tiny-mix", "--data", "p.txt", "--column", "x", "--out", "o"], "--column is for .jsonl"),
        (["cache", "tiny-mix", "--data", "p.txt", "--token-dtype", "int32", "--out", "o"], "--token-dtype is for"),
        (["features", "tiny-mix", "--data", "p.txt", "--column", "x", "--out", "o"], "--column is for .jsonl files"),
        (["sweep", "tiny-mix", "--k", "4", "--out", "o"], "--data FILE is needed"),
        (["sweep", "tiny-mix", "--data", "p.txt", "--out", "o"], "topk needs values of k"),
    ],
)
def test_mistakes_get_a_sentence_and_status_2(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "p.txt").write_text(PROMPT)
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_an_unknown_option_is_argparses_to_explain(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["graph", "tiny-mix"])
    assert stop.value.code == 2
    assert "PROMPT" in capsys.readouterr().err.upper()


def test_options_of_train_are_those_of_its_settings() -> None:
    from pullback.training import TrainConfig
    from pullback.training.config import ARCHITECTURES
    from pullback.training.normalize import NORMALIZATIONS
    from pullback.training.optimizer import OPTIMIZERS
    from pullback.training.schedule import SCHEDULERS

    defaults = TrainConfig()
    assert (train_options.ARCHITECTURES, train_options.SCHEDULERS) == (ARCHITECTURES, SCHEDULERS)
    assert train_options.NORMALIZATIONS == NORMALIZATIONS
    assert tuple(OPTIMIZERS) == train_options.OPTIMIZERS
    for option in train_options.OPTIONS:
        if option.name != "architecture":  # None there: that of the activation
            assert getattr(defaults, option.name) == option.default, option.name


def test_names_of_sparsify_are_translated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "prompts.txt", tmp_path / "tc"
    data.write_text(f"{PROMPT}\ndallas is in\n")
    sizes = ["--num_latents", "64", "--k", "4", "--batch-size", "2", "--ctx_len", "16", "--training-tokens", "60"]
    where = ["--data", str(data), "--hookpoints", "layers.1.mlp", "--transcode", "--out", str(out)]
    assert cli.main(["train", "tiny-mix", *where, *sizes]) == 0
    assert "2 of 16 tokens make train_batch_size_tokens=32" in capsys.readouterr().out
    sets = load_transcoders(out)
    assert (sets.layers, sets[1].d_sae, sets.hook_in(1)) == ([1], 64, "mlp.hook_in")
    assert cli.main(["train", "tiny-mix", *where, "--force", "--loss_fn", "kl"]) == 2
    assert "only the error of activations is trained" in capsys.readouterr().err


def test_several_values_make_a_grid_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "prompts.txt", tmp_path / "runs"
    data.write_text(f"{PROMPT}\ndallas is in\n")
    sizes = ["--d-sae", "64", "--layers", "1", "--training-tokens", "100", "--train-batch-size-tokens", "50"]
    train = ["train", "tiny-mix", "--data", str(data), *sizes, "--out", str(out)]
    assert cli.main([*train, "--k", "4", "8", "--seed", "0", "1"]) == 0
    assert "run_2: k=8, seed=0" in capsys.readouterr().out
    runs = json.loads((out / "runs.json").read_text())
    assert [run["differs"] for run in runs] == [{"k": k, "seed": seed} for k in (4, 8) for seed in (0, 1)]
    assert load_transcoders(out / runs[3]["run"])[1].activation.k == 8
    assert cli.main(train) == 2
    assert "holds transcoders already" in capsys.readouterr().err


def test_a_layer_that_is_not_there_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "prompts.txt"
    data.write_text(PROMPT)
    assert cli.main(["cache", "tiny-mix", "--data", str(data), "--out", str(tmp_path / "c"), "--layers", "1", "9"]) == 2
    assert "layers must be among 0..3 of this model, got [1, 9]" in capsys.readouterr().err


def test_a_slip_in_a_name_of_the_zoo_asks_no_hub(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["intervene", "tiny-mixx", PROMPT, "--scale", "1_524_8=0"]) == 2
    assert "did you mean 'tiny-mix'?" in capsys.readouterr().err


def test_the_command_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["intervene", "tiny-mix", PROMPT, "--scale", "1_9999_8=-2"]) == 2
    assert capsys.readouterr().err == "pullback intervene: feature 9999 is out of range; layer 1 has features 0..1023\n"
