"""Graphs of dictionaries that stay in their files: the same, in a part of the memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pullback as pb
from pullback.attribution import Graph, attribute
from pullback.attribution.local import local_model
from pullback.causal import Swap, interchange, intervene
from pullback.lens import as_lens
from pullback.transcoders import HeldRows, LayeredDictionary, MappedRows, load_transcoders
from pullback.transcoders.lazy import rows
from tests import models

TOKENS = [49, 3, 17, 3, 8, 21]
COLUMNS = ("indptr", "sources", "weights", "dropped")


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_BYTES", 0)
    monkeypatch.setattr(rows, "FEWEST", 8)


def _both(sets: LayeredDictionary, folder: Path, **options) -> tuple[LayeredDictionary, LayeredDictionary]:
    sets.save(folder)
    return load_transcoders(folder, **options), load_transcoders(folder, lazy=True, **options)


def _assert_same(ours: Graph, theirs: Graph, rtol: float = 0.0) -> None:
    assert torch.equal(ours.nodes.feature, theirs.nodes.feature)
    assert torch.equal(ours.nodes.layer, theirs.nodes.layer)
    assert torch.equal(ours.sources, theirs.sources)
    for column in COLUMNS:
        torch.testing.assert_close(getattr(ours, column), getattr(theirs, column), rtol=rtol, atol=rtol)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
@pytest.mark.parametrize("name", ["neox-parallel", "llama"])
def test_graph_of_a_set_in_files(tmp_path, name, activation):
    lens = as_lens(models.build(name, torch.float32))
    eager, lazy = _both(models.random_set(lens, d_sae=100, activation=activation, skip=True), tmp_path / "set")
    _assert_same(attribute(lens, lazy, TOKENS), attribute(lens, eager, TOKENS))
    assert isinstance(lazy[0].W_dec, MappedRows)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("tying", ["none", "per_source", "per_target"])
def test_graph_of_a_cross_layer_transcoder_in_files(tmp_path, tying):
    lens = as_lens(models.build("LN-mha-standard-plain", torch.float32))
    eager, lazy = _both(models.random_clt(lens, tying=tying, skip=True), tmp_path / "clt")
    _assert_same(attribute(lens, lazy, TOKENS, batch_size=7), attribute(lens, eager, TOKENS, batch_size=7))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("options", [{"engine": "autograd"}, {"max_feature_nodes": 9}, {"zero_positions": slice(0, 1)}])
def test_in_float64_by_either_engine_and_in_part(tmp_path, options):
    lens = as_lens(models.build("llama"))
    eager, lazy = _both(models.random_set(lens), tmp_path / "set")
    _assert_same(attribute(lens, lazy, TOKENS, **options), attribute(lens, eager, TOKENS, **options), rtol=1e-11)


def test_from_bfloat16_files(tmp_path):
    lens = as_lens(models.build("llama", torch.float32))
    eager, lazy = _both(models.random_set(lens).to(dtype=torch.bfloat16), tmp_path / "set")
    assert lazy[0].dtype == torch.float32
    _assert_same(attribute(lens, lazy, TOKENS), attribute(lens, eager, TOKENS))


def test_decoder_rows_are_read_once_a_prompt(tmp_path, monkeypatch):
    lens = as_lens(models.build("llama", torch.float32))
    _, lazy = _both(models.random_set(lens), tmp_path / "set")
    read, held = [], MappedRows.held
    monkeypatch.setattr(MappedRows, "held", lambda self, ids: read.append(self) or held(self, ids))
    attribute(lens, lazy, TOKENS, batch_size=3)
    assert len(read) == len(lazy)
    assert not any(isinstance(features.W_dec, HeldRows) for features in lazy.values())


def test_causal_tests_with_a_set_in_files(tmp_path):
    lens = as_lens(models.build("llama", torch.float32))
    eager, lazy = _both(models.random_clt(lens), tmp_path / "clt")
    changes = [(0, 2, 5, 3.0), (1, 4, 7, 0.0)]
    assert torch.equal(intervene(lens, lazy, TOKENS, changes), intervene(lens, eager, TOKENS, changes))
    swap = Swap.features(1, 3, torch.arange(40) % 2 == 0)
    base, source = torch.tensor([TOKENS]), torch.tensor([TOKENS[::-1]])
    assert torch.equal(interchange(lens, lazy, base, source, [swap]), interchange(lens, eager, base, source, [swap]))


@pytest.mark.parametrize("draw", [models.random_set, models.random_clt])
def test_circuits_and_scores_with_dictionaries_in_files(tmp_path, draw):
    """Other features are active in a circuit than on the prompt, and one that is explained need not be."""
    lens = as_lens(models.build("llama"))
    eager, lazy = _both(draw(lens), tmp_path / "sets")
    saes, lazy_saes = _both(models.random_saes(lens), tmp_path / "saes")
    found = local_model(lens, eager, torch.tensor(TOKENS), attention_saes=saes)
    off = [next(f for f in range(40) if f not in acts[2].row(5)[0]) for acts in (found.acts, found.attention.acts)]
    asked = [3, 7, *(pb.FeatureTarget(2, 5, f, attention=bool(attention)) for attention, f in enumerate(off))]
    graph = attribute(lens, eager, TOKENS, attribution_targets=asked, attention_saes=saes)
    other = pb.Ablation.resample(lens, eager, TOKENS[::-1], attention_saes=saes)
    margin = pb.causal.Margin(3, 7)
    seen = []
    for sets, at_attention in ((eager, saes), (lazy, lazy_saes)):
        given = {"margin": margin, "attention_saes": at_attention}
        scores = pb.node_scores(lens, sets, graph, methods=["exact", "eap"], ablation=other, **given).scores
        curves = pb.faithfulness_curves(lens, sets, graph, scores, sizes=(0.1, 0.4), **given).curves
        score = pb.agreement(lens, sets, graph, n=8, **given)
        seen.append((scores["exact"], scores["eap"], torch.tensor(curves["eap"]["signed"].faithfulness), score))
    for ours, theirs in zip(*seen, strict=True):
        if isinstance(ours, torch.Tensor):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        else:
            assert [run.nmse for run in ours.runs.values()] == pytest.approx([r.nmse for r in theirs.runs.values()])


# ---- memory ----------------------------------------------------------------------------------------------------------

D, FEATURES, LAYERS = 192, 24576, 3
ALLOWED = 16 << 20
BATCH = 32  # small enough that none is halved for want of memory: sums in another order have other bits
MODEL = {"n_layers": LAYERS, "d_model": D, "d_head": 16, "n_heads": 4, "d_mlp": 64}
CHILD = """
import resource, sys
import torch
from pullback.attribution import attribute
from pullback.transcoders import load_transcoders
from pullback.transcoders.lazy import rows
from tests import models
from tests.attribution import test_lazy as t

folder, out = sys.argv[1:]
torch.set_num_threads(1)  # as all tests
rows.BLOCK_BYTES = 1 << 20
model = models.native(3, torch.float32, **t.MODEL)
attribute(model, models.random_set(t.as_lens(model)), t.TOKENS)  # whatever is made once is made now
status = dict(line.split(":") for line in open("/proc/self/status"))
limit = 1024 * int(status["VmData"].split()[0]) + t.ALLOWED
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    load_transcoders(folder)
except (MemoryError, RuntimeError) as error:
    print(error)
else:
    sys.exit("the limit does not bite")
attribute(model, load_transcoders(folder, lazy=True), t.TOKENS, batch_size=t.BATCH).save(out)
"""


def _write_blockwise(folder: Path) -> int:
    """A set whose files are made piece by piece; returns their bytes."""
    folder.mkdir()
    (folder / "config.yaml").write_text("activation: topk\nk: 8\nrelu: true\nmodel_kind: transcoder_set\n")
    shapes = {"W_enc": [FEATURES, D], "b_enc": [FEATURES], "W_dec": [FEATURES, D], "b_dec": [D]}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header)
    text += " " * (-len(text) % 8)
    for layer in range(LAYERS):
        g = torch.Generator().manual_seed(layer)
        with open(folder / f"layer_{layer}.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text.encode())
            left = end // 4
            while left:
                part = torch.randn(min(left, 1 << 20), generator=g)
                file.write(part.numpy().tobytes())
                left -= len(part)
    return LAYERS * end


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit on private memory is Linux's")
def test_a_dictionary_several_times_larger_than_memory(tmp_path):
    size = _write_blockwise(tmp_path / "set")
    assert size >= 6 * ALLOWED

    command = [sys.executable, "-c", CHILD, tmp_path / "set", tmp_path / "graph.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    assert "memory" in done.stdout
    model = models.native(3, torch.float32, **MODEL)
    eager = attribute(model, load_transcoders(tmp_path / "set"), TOKENS, batch_size=BATCH)
    _assert_same(pb.Graph.load(tmp_path / "graph.safetensors"), eager)
