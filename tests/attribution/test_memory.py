"""Memory estimates, against what is measured."""

from __future__ import annotations

import re

import pytest
import torch

import pullback as pb
from pullback.attribution import attribute
from pullback.attribution.gather import linear_rows
from pullback.attribution.linear.sweep import bytes_per_target
from pullback.attribution.local import local_model
from pullback.attribution.memory import BYTES_PER_EDGE
from pullback.attribution.targets import feature_batch
from pullback.lens import as_lens
from pullback.transcoders import load_transcoders
from tests import models
from tests.memory import give_back, status

TOKENS = [49, 3, 17, 3, 8, 21, 4, 4]
BIG = {"n_layers": 3, "d_model": 96, "d_head": 24, "n_heads": 4, "n_ctx": 80, "d_mlp": 64}


@pytest.fixture
def growth():
    """growth(f) -> bytes that the process grew by at most while f ran"""

    def measure(f) -> int:
        give_back()
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the peak starts again from here
        except OSError:
            pytest.skip("this system does not measure a process's peak anew")
        before = status("VmRSS")
        f()
        return status("VmHWM") - before

    return measure


@pytest.mark.parametrize("name", ["LN-mha-standard-plain", "RMS-gqa-rotary-gated", "neox-parallel"])
@pytest.mark.parametrize("kind", ["set", "clt", "some layers"])
def test_edges_are_those_of_the_graph(name, kind):
    lens = as_lens(models.build(name))
    layers = [0, 2] if kind == "some layers" else None
    sets = models.random_clt(lens) if kind == "clt" else models.random_set(lens, layers=layers, skip=True)
    found = attribute(lens, sets, TOKENS, max_n_logits=1).n_edges
    estimate = pb.memory_estimate(lens, sets, TOKENS)
    assert found <= estimate.n_edges <= 1.15 * found
    half = len(local_model(lens, sets, lens.to_tokens(TOKENS)).acts[0].values)
    fewer = pb.memory_estimate(lens, sets, TOKENS, max_feature_nodes=half)
    assert fewer.n_edges < estimate.n_edges
    assert fewer.edges == BYTES_PER_EDGE * fewer.n_edges


def test_bytes_of_models_and_dictionaries(tmp_path):
    lens = as_lens(models.build("llama", torch.float32))
    sets = models.random_set(lens, skip=True)
    sets.save(tmp_path / "set")
    ours = pb.memory_estimate(lens, sets, TOKENS)
    matrices = 4 * 3 * 2 * 40 * lens.d_model
    vectors = 4 * 3 * (40 + lens.d_model + lens.d_model**2)
    assert ours.model == sum(p.nbytes for p in lens.model.parameters())
    assert (ours.dictionaries, ours.in_files, ours.held) == (matrices + vectors, 0, 0)
    lazy = pb.memory_estimate(lens, load_transcoders(tmp_path / "set", lazy=True), TOKENS)
    acts = local_model(lens, sets, lens.to_tokens(TOKENS)).acts
    active = sum(len(a.indices.unique()) for a in acts.values())
    assert (lazy.dictionaries, lazy.in_files, lazy.held) == (vectors, matrices, 4 * active * lens.d_model)
    assert lazy.total - lazy.held == ours.total - matrices


def test_weights_in_another_dtype_are_counted_once_more():
    plain, half = (as_lens(models.build("llama", dtype)) for dtype in (torch.float32, torch.bfloat16))
    sets = models.random_set(plain)
    first = pb.memory_estimate(plain, sets, TOKENS)
    second = pb.memory_estimate(half, sets, TOKENS)
    assert second.model < first.model
    assert second.prompt - first.prompt >= plain.W_U.nbytes


def test_what_a_prompt_and_a_batch_take_is_not_more_than_estimated(growth):
    lens = as_lens(models.native(4, torch.float32, **BIG))
    sets = models.random_set(lens, d_sae=512, k=16)
    tokens = torch.arange(BIG["n_ctx"]) % models.VOCAB
    attribute(lens, sets, tokens[:5])
    estimate = pb.memory_estimate(lens, sets, tokens, batch_size=128)
    taken = growth(lambda: attribute(lens, sets, tokens, batch_size=128))
    assert 0.5 * estimate.edges < taken < 1.2 * (estimate.edges + estimate.batch + estimate.prompt)
    local = local_model(lens, sets, tokens)
    batch, last = 1024, sum(acts.nnz for acts in local.acts.values()) - 1
    targets = feature_batch(local.stack, torch.full((batch,), last))  # of the highest layer, at the last position
    assert growth(lambda: linear_rows(local, targets)) < 1.2 * batch * bytes_per_target(local)


def test_said_before_a_run(capsys):
    lens = as_lens(models.build("llama"))
    attribute(lens, models.random_set(lens), TOKENS, verbose=True)
    said = capsys.readouterr().out
    assert re.search(r"memory, about [\d.]+ MB: model: [\d.]+ kB; .*; some [\d,]+ edges: ", said)
    assert "in files" not in said
