"""Many prompts: files, table, shards, and runs that are killed and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pullback as pb
from pullback import cli
from pullback.attribution.many import index, run, together
from pullback.attribution.many.plan import Numbered, batches
from pullback.lens import as_lens
from tests import models
from tests.attribution.test_identities import assert_same_edges

NAME = "LN-gqa-standard-plain"
LENGTHS = (3, 5, 3, 4, 5, 3, 5)
SETTINGS: dict[str, Any] = {"max_n_logits": 2, "prompts_at_once": 2, "verbose": False}


def a_model() -> tuple[Any, Any]:
    lens = as_lens(models.build(NAME))
    return lens, models.random_set(lens, d_sae=10, k=3)


def some_prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, models.VOCAB, (n,), generator=generator) for n in LENGTHS]


def graphs_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    pb.attribute_many(*a_model(), some_prompts(), folder, **SETTINGS)
    return folder


def test_a_graph_for_every_prompt_and_a_row_for_every_graph(whole: Path) -> None:
    lens, sets = a_model()
    table = pb.read_index(whole)
    assert list(table) == list(index.COLUMNS)
    assert table["number"].tolist() == list(range(len(LENGTHS)))
    assert len(pb.GraphCollection(whole)) == len(LENGTHS)
    for row, prompt in zip(table.itertuples(), some_prompts(), strict=True):
        alone = pb.attribute(lens, sets, prompt, max_n_logits=2)
        graph = pb.Graph.load(whole / row.file)
        assert_same_edges(graph, alone, 1e-12)
        assert graph.meta == alone.meta
        assert (row.status, row.n_nodes, row.n_edges) == ("ok", graph.n_nodes, graph.n_edges)
        assert (row.replacement, row.completeness) == pytest.approx(tuple(alone.scores()))
        assert list(row.tokens) == prompt.tolist()
        assert list(zip(row.answers, row.probabilities, strict=True)) == graph.answers()
        assert row.answer == row.answers[int(torch.tensor(list(row.probabilities)).argmax())]
        assert row.check <= 1e-9
        assert row.seconds > 0


def test_done_work_is_not_done_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("*.safetensors")}
    monkeypatch.setattr("pullback.attribution.many.run.local_models", None)  # a call would fail
    table = pb.attribute_many(*a_model(), some_prompts(), whole, **SETTINGS)
    assert (table["status"] == "ok").all()
    assert {path: path.stat().st_mtime_ns for path in whole.glob("*.safetensors")} == before


@pytest.mark.parametrize("lost", ["files", "journal", "half a line"])
def test_what_is_lost_comes_back_with_the_same_bytes(whole: Path, tmp_path: Path, lost: str) -> None:
    """One of two prompts of a batch is gone; the other's file is not written again."""
    expected = graphs_in(whole)
    for name, content in expected.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "run.json").write_bytes((whole / "run.json").read_bytes())
    journal = next(iter(whole.glob("journal-*.jsonl")))
    content = journal.read_bytes()
    if lost == "files":
        for name in sorted(expected)[::2]:
            (tmp_path / name).unlink()
    elif lost == "journal":
        content = b""
    else:
        content = content[:-20]
    (tmp_path / journal.name).write_bytes(content)
    table = pb.attribute_many(*a_model(), some_prompts(), tmp_path, **SETTINGS)
    assert graphs_in(tmp_path) == expected
    assert table["status"].tolist() == ["ok"] * len(LENGTHS)
    assert not list(tmp_path.glob("*.tmp"))


KILLED = """
import sys, torch
from pathlib import Path
import pullback.attribution.many.run as run
from tests.attribution.test_many import SETTINGS, a_model, some_prompts
torch.set_num_threads(1)
write = run._Work._written
def slowly(*arguments):
    print("writing", flush=True)
    row = write(*arguments)
    if len(list(Path(sys.argv[1]).glob("*.safetensors"))) == 4:
        print("enough", flush=True)
        import time; time.sleep(600)
    return row
run._Work._written = slowly
run.attribute_many(*a_model(), some_prompts(), sys.argv[1], **SETTINGS)
"""


def test_a_killed_run_goes_on_and_writes_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a batch whose first graph is written and whose second is not."""
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    deadline = time.monotonic() + 250
    while "enough" not in child.stdout.readline():
        assert child.poll() is None
        assert time.monotonic() < deadline
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    left = graphs_in(tmp_path)
    assert len(left) == 4
    (tmp_path / ".000006-half.safetensors.abc.tmp").write_bytes(b"half a graph")
    assert len(index.journalled(tmp_path)) < 4, "the batch was not finished"
    table = pb.attribute_many(*a_model(), some_prompts(), tmp_path, **SETTINGS)
    assert graphs_in(tmp_path) == graphs_in(whole)
    assert left.items() <= graphs_in(whole).items()
    assert len(pb.GraphCollection(tmp_path)) == len(table) == len(LENGTHS), "a half-written file does not count"


def test_shards_make_what_one_run_makes(tmp_path: Path) -> None:
    model, sets = a_model()
    for shard in (1, 0):
        table = pb.attribute_many(model, sets, some_prompts(), tmp_path, num_shards=2, shard_id=shard, **SETTINGS)
    assert table["number"].tolist() == list(range(len(LENGTHS)))
    assert pb.write_index(tmp_path).name == "index.parquet"
    for row, prompt in zip(table.itertuples(), some_prompts(), strict=True):
        alone = pb.attribute(model, sets, prompt, max_n_logits=2)
        assert_same_edges(pb.Graph.load(tmp_path / row.file), alone, 1e-12)
    with pytest.raises(ValueError, match="shard_id must lie in"):
        pb.attribute_many(model, sets, some_prompts(), tmp_path, num_shards=2, shard_id=2)


def a_pair(device: str) -> tuple[Any, Any]:
    assert device == "cpu"
    torch.set_num_threads(1)
    return a_model()


def test_a_process_for_each_device(whole: Path, tmp_path: Path) -> None:
    pb.attribute_on_devices(a_pair, some_prompts(), tmp_path, ["cpu", "cpu"], **SETTINGS)
    assert pb.read_index(tmp_path)["status"].tolist() == ["ok"] * len(LENGTHS)
    assert {path.name for path in tmp_path.glob("journal-*")} == {
        f"journal-0000{shard}-of-00002.jsonl" for shard in (0, 1)
    }
    assert set(graphs_in(tmp_path)) == set(graphs_in(whole))
    with pytest.raises(ValueError, match="there is no CUDA device"):
        pb.attribute_on_devices(a_pair, some_prompts(), tmp_path, [])


def test_one_prompts_failure_is_not_the_others(tmp_path: Path) -> None:
    lens = as_lens(models.build("llama"))
    prompts = ["w1 w2 w3", "", "w4 w5 w6", "w1 " * 40, torch.tensor([1, 2, 3, 4])]
    arguments = {**SETTINGS, "attribution_targets": [pb.FeatureTarget(0, 3, 1)]}
    table = pb.attribute_many(lens, models.random_set(lens), prompts, tmp_path, **arguments)
    assert table["status"].tolist()[::2] == ["ok"] * 3
    assert "prompt is empty" in table["status"][1]
    assert "reads at most" in table["status"][3]
    assert table["prompt"][0] == "w1 w2 w3"
    damaged = models.native(1)
    with torch.no_grad():
        damaged.W_E[7] = torch.nan
    sets = models.random_set(as_lens(damaged))
    prompts = [torch.tensor(tokens) for tokens in ([1, 2, 3], [4, 7, 5], [6, 5, 4])]
    table = pb.attribute_many(damaged, sets, prompts, tmp_path / "nan", verbose=False)
    assert table["status"].tolist()[::2] == ["ok", "ok"]
    assert "NaN or infinite" in table["status"][1]
    assert len(pb.GraphCollection(tmp_path / "nan")) == 2


def test_batches_halve_where_memory_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def limited(lens: Any, locals: Any, *rest: Any) -> Any:
        sizes.append(len(locals))
        if len(locals) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return together.attribute_together(lens, locals, *rest)

    monkeypatch.setattr(run, "attribute_together", limited)
    table = pb.attribute_many(*a_model(), some_prompts()[:3:2], tmp_path, **SETTINGS)
    assert sizes == [2, 1, 1]
    assert (table["status"] == "ok").all()


def test_what_is_left_of_a_batch_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory ends while the second of three graphs is put together."""
    sizes: list[int] = []

    def limited(lens: Any, locals: Any, *rest: Any) -> Any:
        sizes.append(len(locals))
        for graph in together.attribute_together(lens, locals, *rest):
            yield graph
            if len(locals) == 3:
                raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(run, "attribute_together", limited)
    prompts = [torch.arange(4) + i for i in range(3)]
    table = pb.attribute_many(*a_model(), prompts, tmp_path, **{**SETTINGS, "prompts_at_once": 3})
    assert sizes == [3, 1, 1]
    assert (table["status"] == "ok").all()
    assert table["number"].tolist() == [0, 1, 2]


def test_prompts_share_what_edges_may_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lens, sets = a_model()
    prompts = [torch.arange(4) + i for i in range(5)]
    edges = pb.memory_estimate(lens, sets, prompts[0]).edges
    sizes: list[int] = []

    def counted(lens: Any, locals: Any, *rest: Any) -> Any:
        sizes.append(len(locals))
        return together.attribute_together(lens, locals, *rest)

    monkeypatch.setattr(run, "attribute_together", counted)
    monkeypatch.setattr(together, "HELD", 5 * edges // 2)
    table = pb.attribute_many(lens, sets, prompts, tmp_path, verbose=False)
    assert sizes == [2, 2, 1]
    assert (table["status"] == "ok").all()
    with monkeypatch.context() as patch:
        patch.setattr(together, "HELD", 1)  # one at a time, however much it takes
        pb.attribute_many(lens, sets, prompts, tmp_path / "alone", verbose=False)
    assert sizes[3:] == [1] * 5


def test_a_folder_is_of_one_model_and_one_way_to_read_it(whole: Path) -> None:
    model, sets = a_model()
    with pytest.raises(ValueError, match=r"was begun with max_n_logits=2, now 3: give out_dir another"):
        pb.attribute_many(model, sets, some_prompts(), whole, **{**SETTINGS, "max_n_logits": 3})
    with pytest.raises(ValueError, match=r"other weights \(W_enc 0\)"):
        pb.attribute_many(model, models.random_set(model, 1, d_sae=10, k=3), some_prompts(), whole, **SETTINGS)
    with pytest.raises(ValueError, match="give both"):
        pb.attribute_many(model, sets, some_prompts(), whole, node_threshold=0.8)
    with pytest.raises(ValueError, match="a list of prompts"):
        pb.attribute_many(model, sets, "one", whole)


def test_without_pyarrow_the_table_is_csv(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(index, "has_parquet", lambda: False)
    rows = list(index.journalled(whole).values())
    journal = next(iter(whole.glob("journal-*.jsonl")))
    (tmp_path / journal.name).write_bytes(journal.read_bytes())
    assert index.write_index(tmp_path).name == "index.csv"
    rows.sort(key=lambda row: row["number"])
    assert pb.read_index(tmp_path)["tokens"].tolist() == [row["tokens"] for row in rows]
    with pytest.raises(ValueError, match=r"pip install 'pullback\[tables\]'"):
        pb.read_index(whole)
    with pytest.raises(FileNotFoundError, match="no index in"):
        pb.read_index(tmp_path / "nothing")


def test_no_prompts_and_no_folder(tmp_path: Path) -> None:
    model, sets = pb.zoo.load("planted"), pb.zoo.transcoders("planted")
    with pytest.raises(ValueError, match="there are no prompts"):
        pb.attribute_many(model, sets, [], tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="graphs go into a folder, and .* is a file"):
        pb.attribute_many(model, sets, ["dallas is in"], tmp_path / "file")


def test_batches_follow_from_the_list_alone() -> None:
    prompts = [Numbered(i, "", f"{i}", [0] * n) for i, n in enumerate((3, 5, 3, 3, 5))]
    large: Any = SimpleNamespace(device=torch.device("cpu"), n_heads=12, d_head=64, d_model=768)
    numbers = [[p.number for p in batch] for batch in batches(prompts, 2, large)]
    assert numbers == [[0, 2], [3], [1, 4]]
    assert [len(b) for b in batches(prompts * 20, None, large)] == [32, 28, 32, 8]
    small = as_lens(models.build("llama"))
    assert [len(b) for b in batches(prompts * 20, None, small)] == [60, 40], "prompt by prompt, twice as many"
    assert [len(b) for b in batches(prompts * 40, None, small)] == [64, 56, 64, 16]


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["the capital of texas is", {"prompt": "dallas is in"}, {"tokens": [1, 9, 8]}]
    path, out = tmp_path / "prompts.jsonl", tmp_path / "graphs"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["graph", "tiny-mix", "--prompts", str(path), "--out", str(out), "--prune"]
    for shard in ("0", "1"):
        assert cli.main([*command, "--num-shards", "2", "--shard-id", shard]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1].endswith("3 prompts, 0 without a graph")
    assert said.count("without") == 2, "once a shard"
    table = pb.read_index(out)
    assert table["answer"].tolist()[:2] == ["austin", "texas"]
    assert pb.Graph.load(out / table["file"][0]).meta["pruning_settings"]["node_threshold"] == 0.8
    path.write_text("{\n")
    assert cli.main(command) == 2
    assert "line 1 is no JSON" in capsys.readouterr().err
    path.write_text('{"other": 1}\n')
    assert cli.main(command) == 2
    assert "line 1 has no prompt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["graph", "tiny-mix", "--out", str(out)])
    assert cli.main([*command, "a prompt"]) == 2
    assert "not both" in capsys.readouterr().err
