"""Edges between heads and MLPs: exact patching against patches by hand, the rest against exact patching."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.causal import auroc
from pullback.causal.edges import EDGE_METHODS, edge_scores
from pullback.causal.edges.methods import Pairs
from pullback.lens import as_lens
from tests import models
from tests.causal.exact import prompts

CLEAN, CORRUPTED = prompts(2, 6, seed=2), prompts(2, 6, seed=3)
TARGET, OTHER = torch.tensor([3, 8]), torch.tensor([7, 1])
WIRINGS = ["LN-gqa-standard-plain", "RMS-gqa-rotary-gated", "neox-parallel"]


def margins(logits: Tensor) -> Tensor:
    rows = torch.arange(2)
    return logits[rows, -1, TARGET] - logits[rows, -1, OTHER]


def scores(lens: Any, *methods: str, **options: Any) -> dict[str, Tensor]:
    return edge_scores(lens, CLEAN, CORRUPTED, TARGET, OTHER, methods=methods, **options).scores


@pytest.mark.parametrize("name", WIRINGS)
def test_exact_edges_by_hand(name: str) -> None:
    """A head's value through its own norm and projection, an MLP's input, and the last stream."""
    lens = as_lens(models.build(name))
    found = edge_scores(lens, CLEAN, CORRUPTED, TARGET, OTHER, methods=["exact"], batch_size=4)
    value = dict(zip(found.edges, found.scores["exact"].tolist(), strict=True))
    sites = [
        f"blocks.{i}.{s}" for i in range(3) for s in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "attn.hook_z")
    ]
    (plain, clean), (_, other) = (lens.record(t, [*sites, "blocks.2.hook_resid_post"]) for t in (CLEAN, CORRUPTED))
    model = lens.model

    def lost(site: str, edit: Any) -> float:
        return float((margins(plain) - margins(lens.record(CLEAN, [], [(site, edit)])[0])).mean())

    def mlp_1() -> Tensor:
        return other["blocks.1.hook_mlp_out"] - clean["blocks.1.hook_mlp_out"]

    # m1 -> m2: the stream that MLP 2 reads, moved, through its own norm.
    stream = clean["blocks.2.hook_resid_pre"] + (0 if lens.parallel else clean["blocks.2.hook_attn_out"])
    moved = model.blocks[2].ln2(stream + mlp_1()).detach()
    assert value["m1", "m2"] == pytest.approx(lost("blocks.2.mlp.hook_in", lambda _y: moved), abs=1e-6)
    # a0.h1 -> a2.h1<v>: one head's output, into one key/value head.
    W_O = lens.layer_weights(0).W_O[1]
    head = (other["blocks.0.attn.hook_z"] - clean["blocks.0.attn.hook_z"])[:, :, 1] @ W_O
    normed = model.blocks[2].ln1(clean["blocks.2.hook_resid_pre"] + head).detach()
    w = lens.layer_weights(2)

    def into_value(y: Tensor) -> Tensor:
        y = y.clone()
        y[:, :, 1] = normed @ w.W_V[1] + w.b_V[1]
        return y

    assert value["a0.h1", "a2.h1<v>"] == pytest.approx(lost("blocks.2.attn.hook_v", into_value), abs=1e-6)
    # input -> logits
    start = other["blocks.0.hook_resid_pre"] - clean["blocks.0.hook_resid_pre"]
    last = model.ln_final(clean["blocks.2.hook_resid_post"] + start).detach()
    by_hand = float((margins(plain) - margins(last @ lens.W_U + lens.b_U)).mean())
    assert value["input", "logits"] == pytest.approx(by_hand, abs=1e-6)
    assert (("a2.h0", "m2") in value) == (not lens.parallel)
    assert not {("m2", "m2"), ("a2.h0", "a2.h0<q>")} & set(value)


@pytest.mark.parametrize("name", WIRINGS)
def test_attribution_is_the_derivative_of_patching(name: str) -> None:
    """Of what edges carry differently, a millionth."""

    class Small(Pairs):
        def differences(self) -> Tensor:
            return 1e-6 * super().differences()

    lens = as_lens(models.build(name))
    settings = (lens, CLEAN, CORRUPTED, TARGET, OTHER, 5, 64)
    exact = EDGE_METHODS["exact"](Small(*settings)) * 1e6
    assert float(exact.abs().max()) > 1e-2
    assert torch.allclose(EDGE_METHODS["eap"](Pairs(*settings)), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_on_a_linear_model_all_agree(steps: int) -> None:
    """No norm, ReLUs far from off, patterns that read nothing."""
    model = models.native(seed=31, normalization_type=None, act_fn="relu")
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.b_in.add_(500.0)
            block.mlp.W_out.mul_(1e-2)
            block.attn.W_Q.mul_(0.0)
            block.attn.W_K.mul_(0.0)
    lens = as_lens(model)
    assert not bool(model.blocks[0].attn.W_Q.any()), "weights are written where they are read"
    found = scores(lens, *(m for m in EDGE_METHODS if m != "ifr"), steps=steps)
    assert float(found["exact"].abs().max()) > 0.1
    for method, value in found.items():
        assert torch.allclose(value, found["exact"], atol=1e-9), method


def test_integrated_gradients_of_the_input_are_complete() -> None:
    """Every path from the input starts with one edge: their sum is the whole loss, up to an error that halves."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    whole = float((margins(lens.logits(CLEAN)) - margins(lens.logits(CORRUPTED))).mean())
    edges = edge_scores(lens, CLEAN, CORRUPTED, TARGET, OTHER, methods=[]).edges
    out = torch.tensor([source == "input" for source, _ in edges])
    gaps = [float(scores(lens, "eap_ig_inputs", steps=m)["eap_ig_inputs"][out].sum()) - whole for m in (8, 16, 32)]
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.3)
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.3)


def test_flow_routes_are_shares() -> None:
    lens = as_lens(models.build("gpt2"))
    found = edge_scores(lens, CLEAN, CORRUPTED, TARGET, OTHER, methods=["ifr", "clean_corrupted"])
    table = found.to_pandas()
    assert list(table.columns) == ["source", "target", "ifr", "clean_corrupted"]
    sums = table.groupby("target")["ifr"].sum()
    assert ((sums - 1).abs() < 1e-9).all()
    assert float(table[(table.source == "input") & (table.target == "a0.h0<q>")]["ifr"].iloc[0]) == pytest.approx(1)


def test_planted_edges_stand_out() -> None:
    """One city for another: its state is computed by MLP 0, moved by one head, and turned into the capital by MLP 2."""
    lens = as_lens(pb.zoo.load("planted", dtype=torch.float64))
    truth = pb.zoo.truth("planted")
    one = next(p for p in truth.prompts if p.kind == "two_hop")
    two = next(p for p in truth.prompts if p.kind == "two_hop" and p.answer != one.answer)
    tokens = [lens.to_tokens(p.text)[None] for p in (one, two)]
    answers = [lens.to_tokens(p.answer)[-1:] for p in (one, two)]
    found = edge_scores(lens, *tokens, *answers, methods=["exact", "eap"])
    layer, head = truth.state_head
    true = {("input", "m0"), ("m0", f"a{layer}.h{head}<v>"), (f"a{layer}.h{head}", "m2"), ("m2", "logits")}
    known = torch.tensor([edge in true for edge in found.edges])
    assert int(known.sum()) == 4
    assert auroc(found.scores["exact"], known) == 1
    assert auroc(found.scores["eap"].abs(), known) > 0.95


def test_what_cannot_be_scored_is_said() -> None:
    lens = as_lens(models.build("gpt2"))

    def refused(sentence: str, **changes: Any) -> None:
        given = {"clean": CLEAN, "corrupted": CORRUPTED, "target": TARGET, "other": OTHER} | changes
        with pytest.raises(ValueError, match=sentence):
            edge_scores(lens, **given)

    refused("there are the methods exact, eap, .*, not atp", methods=["atp"])
    refused(r"must be \(N, T\) alike, target and other \(N\); got \[2, 6\], \[2, 5\]", corrupted=CORRUPTED[:, 1:])
    refused("steps and batch_size must be at least 1", steps=0)
    refused("token id 99 is outside", clean=torch.full((2, 6), 99))
    refused("target: token id 99 is outside", target=torch.tensor([0, 99]))
    refused("other: token id -1 is outside", other=torch.tensor([0, -1]))
    assert list(edge_scores(lens, CLEAN, CORRUPTED, TARGET, OTHER, methods=iter(["ifr"])).scores) == ["ifr"]
