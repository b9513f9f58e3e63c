"""`pullback hierarchical` as it is typed: what it says, the page and the JSON, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import pullback as pb
from pullback.causal import Margin, circuit_faithfulness
from pullback.cli import main

PROMPT = "the capital of the state containing dallas is"
GATE = ["--tau", "0.02", "--relative"]


def run(*arguments: str) -> int:
    return main(["hierarchical", "tiny-mix", PROMPT, *arguments])


def test_it_lists_the_circuit_and_writes_a_page_and_a_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / name) for name in ("circuit.html", "circuit.json")]
    assert run("--target", "austin", *GATE, "--out", *files) == 0
    said = capsys.readouterr().out
    model, sets = pb.zoo.load("tiny-mix"), pb.zoo.transcoders("tiny-mix")
    found = pb.hierarchical(model, sets, PROMPT, "austin", tau=0.02, relative=True)
    nodes, edges = found.to_pandas()
    n = int((nodes.kind == "feature").sum())
    assert f"{n} features, {len(nodes)} nodes, {len(edges)} edges" in said
    assert f"give {found.recovery:.1%} of the target" in said
    assert [f"wrote {file}" in said for file in files] == [True, True]
    listed = re.findall(r"^([+-][\d.]+)  (\S+)  at '", said, flags=re.M)
    sizes = [abs(float(value)) for value, _ in listed]
    assert sizes == sorted(sizes, reverse=True)
    assert len(listed) == min(n, 20)
    assert {name for _, name in listed} <= set(nodes.id)

    payload = json.loads(Path(files[1]).read_text(encoding="utf-8"))
    assert payload["target"] == found.whole.node_ids()[found.target]
    assert payload["recovery"] == found.recovery
    assert [node["id"] for node in payload["nodes"]] == nodes.id.tolist()
    assert [node["attribution"] for node in payload["nodes"]] == nodes.attribution.tolist()
    assert {(e["source"], e["target"]) for e in payload["edges"]} == set(zip(edges.source, edges.target, strict=True))
    token = int(found.whole.nodes.feature[found.target])
    for errors in ("kept", "dropped"):
        share = circuit_faithfulness(model, sets, found.whole, found.kept, measure=Margin(token), errors=errors)
        assert payload["faithfulness"][errors] == pytest.approx(share)
        assert f"errors {errors}, the model keeps {share:.1%}" in said
    page = Path(files[0]).read_text(encoding="utf-8")
    assert page.startswith("<!")
    assert payload["target"] in page

    assert run(*GATE) == 0
    assert capsys.readouterr().out.splitlines()[:5] == said.splitlines()[:5], "austin is the likeliest"


def test_differences_features_and_every_way_to_cut(capsys: pytest.CaptureFixture[str]) -> None:
    def features(*arguments: str) -> int:
        assert run(*arguments) == 0
        found = re.search(r"(\d+) features, .*\n(.* the model keeps .*\n){2}", capsys.readouterr().out)
        assert found is not None
        return int(found[1])

    assert features("--target-difference", "austin", "sacramento", *GATE) > 10
    local = features("--target-feature", "1", "8", "524", *GATE)
    assert local == features("--target-feature", "1", "-1", "524", *GATE)
    signed = features("--target", "austin", "--tau", "0.1")
    assert features("--target", "austin", "--tau", "0.1", "--mode", "abs") > signed
    assert features("--target", "austin", "--top", "2") <= 2 * 4
    assert features("--target", "austin", *GATE, "--standard") != features("--target", "austin", *GATE)
    assert run("--target", "austin", "--top", "2") == 0
    few = re.search(r"(\d+) nodes", capsys.readouterr().out)
    assert run("--target", "austin", "--top", "2", "--keep-errors") == 0
    more = re.search(r"(\d+) nodes", capsys.readouterr().out)
    assert few is not None
    assert more is not None
    assert int(more[1]) > int(few[1])


def test_what_attention_carries_is_listed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / name) for name in ("circuit.html", "circuit.json")]
    assert run("--target", "austin", *GATE, "--qk", "3", "--out", *files) == 0
    said = capsys.readouterr().out
    entries = json.loads(Path(files[1]).read_text(encoding="utf-8"))["attention"]
    assert len(entries) == 3
    moves_dallas = next(one for one in entries if (one["layer"], one["head"]) == (1, 0))
    assert (moves_dallas["query_pos"], moves_dallas["key_pos"]) == (8, 7)
    assert max(one["check"] for one in entries) < 1e-5
    line = "head 1.0, 'is' (8) looks at 'dallas' (7) by 99.8%: carries "
    assert f"{line}{moves_dallas['carried']:+.3f}; score {moves_dallas['score']:+.2f}, of which" in said
    pair = moves_dallas["pairs"][0]
    assert f"{pair['value']:+.2f}  {pair['query']} with {pair['key']}" in said
    page = Path(files[0]).read_text(encoding="utf-8")
    assert page.count('"query_pos"') == 3
    assert run("--target-difference", "austin", "sacramento", *GATE, "--qk", "1", "--rival") == 0
    assert re.search(r"score [+-][\d.]+ above that of '\w+' \(\d\), of which", capsys.readouterr().out)


def test_features_of_attention_are_part_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--target", "austin", *GATE, "--attention-saes", "zoo", "--qk", "2") == 0
    said = capsys.readouterr().out
    assert re.search(r"^[+-][\d.]+  A\d_\d+_\d  at '", said, flags=re.M)
    assert said.count("looks at") == 2
    assert said.count("the model keeps") == 2
    one = re.search(r"  A([1-9])_(\d+)_(\d)  at '", said)
    assert one is not None
    layer, feature, position = one.groups()
    assert run("--target-feature", f"A{layer}", position, feature, *GATE, "--attention-saes", "zoo") == 0
    assert f"  A{layer}_{feature}_{position}  at '" in capsys.readouterr().out


def test_a_feature_that_reads_no_other_is_no_circuit_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--target-feature", "0", "8", "5", "--tau", "0") == 0
    said = capsys.readouterr().out
    assert "1 features, " in said
    assert "the model keeps" not in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "circuit.png"], "--out takes files that end in .html and .json, got 'circuit.png'"),
        (["--top", "-1"], "top must be 0 or more nodes of a site, got -1"),
        (["--target", "the capital"], "the target 'the capital' is 2 tokens; a target must be one token"),
        (["--target-difference", "austin", "austin"], "a difference of logits needs different tokens"),
        (["--target-feature", "9", "0", "0"], "there are transcoders at layers [0, 1, 2, 3] only"),
        (["--target-feature", "0", "99", "0"], "position 99 lies outside the prompt, which has 9 tokens"),
        (["--target-feature", "0", "0", "99999"], "layer 0 has features 0..1023"),
        (["--target-feature", "A1", "0", "5"], "there are no autoencoders of attention here; give attention_saes"),
        (["--target-feature", "1", "x", "5"], "--target-feature takes LAYER POSITION FEATURE, three integers (A1 for"),
        (["--qk", "0"], "--qk takes a number of entries of patterns, 1 or more, got 0"),
        (["--rival"], "--rival is for the scores of --qk: give --qk N, too"),
        (["--lazy"], "--lazy is for the files of --transcoders"),
        (["--transcoders", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_get_a_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_two_targets_are_argparses_to_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--target", "austin", "--target-feature", "1", "8", "524"], ["--mode", "both"], ["--tau", "x"]):
        with pytest.raises(SystemExit) as stop:
            run(*arguments)
        assert stop.value.code == 2
        assert "error: argument" in capsys.readouterr().err
