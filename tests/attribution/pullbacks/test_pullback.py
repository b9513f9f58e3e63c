"""Pullbacks by weights alone: every kind of source against its formula, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.attribution.weights.wiring import Wiring
from pullback.lens import as_lens
from tests import families, models

WIRINGS = ["gpt2", "gpt2-folded", "RMS-gqa-rotary-gated", "neox-parallel", "gemma2"]
CLOSE = {"atol": 1e-10, "rtol": 0}


def build(name: str) -> Any:
    return as_lens((families if name in families.FAMILIES else models).build(name))


def normed(norm: Any, v: Tensor) -> Tensor:
    """The transpose of w (x - mean x), written out."""
    v = v if norm.w is None else v * norm.w
    return v - v.mean(-1, keepdim=True) if norm.kind == "LN" else v


def ov(lens: Any, head: tuple[int, int]) -> Tensor:
    w = lens.layer_weights(head[0])
    kv = head[1] // (len(w.W_O) // len(w.W_V))
    return w.W_V[kv] @ w.W_O[head[1]]


@pytest.mark.parametrize("ln", ["frozen", "ratio"])
@pytest.mark.parametrize("name", WIRINGS)
def test_features_at_the_same_token_and_through_chains_of_heads(name: str, ln: str) -> None:
    lens = build(name)
    sets = models.random_set(lens)
    W_enc, norms = sets[2].W_enc, [lens.layer_weights(i) for i in range(3)]
    read = W_enc if ln == "ratio" else normed(norms[2].ln2, W_enc)
    same = pb.pullback(lens, sets, (2, None), 0, ln=ln)
    assert torch.allclose(same.values, read @ sets[0].W_dec.T, **CLOSE)
    top = 2 if not lens.parallel else 1
    for chain in [(top, 3)], [(1, 2)], [(1, 2), (2, 1)]:
        if chain[-1][0] > top:
            continue
        v = read
        for head in reversed(chain):
            v = v @ ov(lens, head).T
            v = v if ln == "ratio" else normed(norms[head[0]].ln1, v)
        through = pb.pullback(lens, sets, (2, None), 0, heads=chain, ln=ln)
        assert torch.allclose(through.values, v @ sets[0].W_dec.T, **CLOSE)
        tokens = pb.pullback(lens, sets, (2, [3, 1]), "embedding", heads=chain, ln=ln)
        scale = lens.d_model**0.5 if name == "gemma2" else 1
        assert torch.allclose(tokens.values, v[[3, 1]] @ lens.W_E.T * scale, **CLOSE)
        itself = pb.pullback(lens, sets, (2, [3, 1]), "residual", heads=chain, ln=ln)
        assert torch.allclose(itself.values, v[[3, 1]], **CLOSE)
    one = pb.pullback(lens, sets, (2, 5), 0, heads=(1, 2), ln=ln)
    assert one.heads == [(1, 2)]
    layer, source, *head = np.array([2, 0, 1, 2])
    of_numpy = pb.pullback(lens, sets, (layer, 5), source, heads=tuple(head), ln=ln)  # pyright: ignore
    assert torch.equal(of_numpy.values, one.values)


@pytest.mark.parametrize("name", ["gpt2", "neox-parallel"])
def test_logits_directions_and_positions(name: str) -> None:
    lens = build(name)
    sets = models.random_clt(lens)
    u = normed(lens.ln_final, (lens.W_U - lens.W_U.mean(1, keepdim=True)).T)
    logits = pb.pullback(lens, sets, [pb.LogitTarget(4), pb.LogitDifference((7, 9))], 1)
    written = Wiring(lens, sets).writes(1, 3)
    assert torch.allclose(logits.values, torch.stack([u[4], u[7] - u[9]]) @ written.T, **CLOSE)
    assert logits.targets[1].count("-") == 1
    v = torch.randn(lens.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for site, expected in (("blocks.1.hook_resid_post", v), ("blocks.2.mlp.hook_in", None), ("ln_final", None)):
        if expected is None:
            expected = normed(lens.ln_final if site == "ln_final" else lens.layer_weights(2).ln2, v)
        found = pb.pullback(lens, sets, pb.DirectionTarget(v, site), "residual")
        assert torch.allclose(found.values[0], expected, **CLOSE)
    if name == "gpt2":
        found = pb.pullback(lens, sets, (0, 1), "position")
        W = lens.model.W_pos.detach()
        assert torch.allclose(found.values, normed(lens.layer_weights(0).ln2, sets[0].W_enc[[1]]) @ W.T, **CLOSE)
    else:
        with pytest.raises(ValueError, match="adds no position vectors"):
            pb.pullback(lens, sets, (0, 1), "position")


def autoencoders(lens: Any, hook: str) -> pb.TranscoderSet:
    drawn = models.random_set(lens, 5)
    return pb.TranscoderSet(
        {
            i: pb.Transcoder(t.W_enc, t.b_enc, t.W_dec, t.b_dec, activation=t.activation, hook_in=hook, hook_out=hook)
            for i, t in drawn.items()
        }
    )


def test_features_of_autoencoders() -> None:
    lens = build("gpt2")
    sets, saes = models.random_set(lens), autoencoders(lens, "hook_attn_out")
    read = normed(lens.layer_weights(1).ln2, sets[1].W_enc)
    found = pb.pullback(lens, sets, (1, None), (saes, 1))
    assert torch.allclose(found.values, read @ saes[1].W_dec.T, **CLOSE)
    through = pb.pullback(lens, sets, (1, None), (autoencoders(lens, "hook_resid_pre"), 1), heads=(1, 0))
    v = normed(lens.layer_weights(1).ln1, read @ ov(lens, (1, 0)).T)
    assert torch.allclose(through.values, v @ saes[1].W_dec.T, **CLOSE)
    with pytest.raises(ValueError, match="written above what reads it"):
        pb.pullback(lens, sets, (1, None), (saes, 1), heads=(1, 0))
    with pytest.raises(ValueError, match="written above what reads it"):
        pb.pullback(build("neox-parallel"), models.random_set(build("neox-parallel")), (1, None), (saes, 1))


def test_the_largest_are_those_of_the_whole_table() -> None:
    lens = build("gpt2")
    sets = models.random_clt(lens)
    whole = pb.pullback(lens, sets, (2, None), 0, heads=(1, 1))
    for absolute in (True, False):
        kept = pb.pullback(lens, sets, (2, None), 0, heads=(1, 1), k=7, absolute=absolute)
        chosen = whole.top(7, absolute=absolute)
        assert torch.equal(kept.ids, chosen.ids)
        assert torch.allclose(kept.values, chosen.values, **CLOSE)
    table = kept.to_pandas(2)
    assert list(table.columns) == ["target", "source", "pullback"]
    assert len(table) == 80
    assert table.target[2] == "2_1"
    assert whole.to_pandas(3).source.tolist() == whole.top(3).ids.flatten().tolist()
    assert repr(kept) == "Pullback(40 targets through 1.1 onto top 7 of: features of layer 0)"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"target": (7, 1)}, "no features of layer 7"),
        ({"target": (1, [40])}, r"ids in 0..39, got \[40\]"),
        ({"target": None}, "name a target"),
        ({"target": [pb.FeatureTarget(1, 0, 2), pb.LogitTarget(3)]}, "read at one place"),
        ({"target": pb.DirectionTarget(torch.ones(3))}, r"must be \[16\] and finite, got \[3\]"),
        ({"source": 1}, "written above what reads it"),
        ({"source": 9}, "no features of layer 9"),
        ({"source": "heads"}, "a source is a layer of the set"),
        ({"heads": (2, 0)}, "writes above what the target reads"),
        ({"heads": [(1, 0), (1, 1)]}, "layers must ascend"),
        ({"heads": (1, 4)}, r"no heads \[\(1, 4\)\]; the model has 3 layers of 4"),
        ({"k": 0}, "k must be at least 1"),
        ({"ln": "none"}, "ln must be one of frozen, ratio"),
    ],
)
def test_what_there_is_not(arguments: dict[str, Any], sentence: str) -> None:
    lens = build("gpt2")
    with pytest.raises(ValueError, match=sentence):
        pb.pullback(lens, models.random_set(lens), **({"target": (1, [2]), "source": 0} | arguments))


def test_a_table_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = build("gpt2")
    monkeypatch.setattr("pullback.attribution.pullbacks.invariant.DENSE", 1599)
    with pytest.raises(ValueError, match="40 targets by 40 sources are too many"):
        pb.pullback(lens, models.random_set(lens), (1, None), 0)
    assert pb.pullback(lens, models.random_set(lens), (1, None), 0, k=3).values.shape == (40, 3)
