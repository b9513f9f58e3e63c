"""De-embeddings and logit effects against their formulas, on random models and on one that can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pullback as pb
from pullback.attribution.weights.wiring import Wiring
from tests import models
from tests.attribution.pullbacks.test_pullback import CLOSE, build, normed

WIRINGS = ["gpt2", "RMS-gqa-rotary-gated", "neox-parallel"]


def ends(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = values.argsort(dim=1, descending=True, stable=True)
    return order[:, :k], order.flip(1)[:, :k]


@pytest.mark.parametrize("heads", [(), (1, 3)])
@pytest.mark.parametrize("name", WIRINGS)
def test_a_de_embedding_is_the_pullback_onto_tokens(name: str, heads: Any) -> None:
    lens = build(name)
    sets = models.random_set(lens)
    found = pb.deembed(lens, sets, 2, [3, 8], heads=heads, k=4, full=True)
    expected = pb.pullback(lens, sets, (2, [3, 8]), "embedding", heads=heads).values
    assert torch.allclose(found.values, expected, **CLOSE)
    top, bottom = ends(expected, 4)
    assert torch.equal(found.top_ids, top)
    assert torch.equal(found.bottom_ids, bottom)
    assert torch.allclose(found.bottom, expected.gather(1, bottom), **CLOSE)
    assert torch.allclose(found.on([7, 2]), expected[:, [7, 2]], **CLOSE)


@pytest.mark.parametrize("name", WIRINGS)
def test_logit_effects_are_decoder_rows_times_the_unembedding(name: str) -> None:
    lens = build(name)
    sets = models.random_clt(lens)
    written = Wiring(lens, sets).writes(0, 3)
    W_U = lens.W_U.T
    for demean in (True, False):
        u = normed(lens.ln_final, W_U - W_U.mean(0) if demean else W_U)
        found = pb.logit_effects(lens, sets, 0, None, k=3, demean=demean, final_scale=2.0, full=True)
        assert torch.allclose(found.values, written @ u.T / 2, **CLOSE)
    whole = pb.pullback(lens, sets, [pb.LogitTarget(5)], 0).values[0]
    assert torch.allclose(pb.logit_effects(lens, sets, 0, None, full=True).values[:, 5], whole, **CLOSE)


def test_scores_and_whitened_embeddings() -> None:
    lens = build("gpt2")
    sets = models.random_set(lens)
    plain = pb.deembed(lens, sets, 1, [4, 5], full=True).values
    scores = pb.deembed(lens, sets, 1, [4, 5], zscore=True, full=True)
    expected = (plain - plain.mean(1, keepdim=True)) / plain.std(1, correction=0, keepdim=True)
    assert torch.allclose(scores.values, expected, **CLOSE)
    assert torch.allclose(scores.top[:, 0], expected.amax(1), **CLOSE)
    white = pb.deembed(lens, sets, 1, None, whiten=True, full=True).values
    # Of decorrelated embeddings every direction varies by its own length, and two directions by their dot product.
    v = pb.pullback(lens, sets, (1, None), "residual").values
    assert torch.allclose(white.mean(1), torch.zeros(40, dtype=white.dtype), **CLOSE)
    assert torch.allclose(white @ white.T / models.VOCAB, v @ v.T, atol=1e-9)
    both = pb.deembed(lens, sets, 1, None, whiten=True, zscore=True, full=True).values
    assert torch.allclose(both, white / white.std(1, correction=0, keepdim=True), atol=1e-9)


def test_one_can_read_it() -> None:
    lens = build("gpt2")
    sets = models.random_set(lens)
    found = pb.deembed(lens, sets, 1, [4, 2], heads=(0, 1), k=3)
    table = found.to_pandas()
    assert list(table.columns) == ["feature", "end", "rank", "token_id", "token", "value"]
    assert table.feature.tolist() == ["1_4"] * 6 + ["1_2"] * 6
    assert table.end.tolist() == (["top"] * 3 + ["bottom"] * 3) * 2
    assert table.token.tolist()[0] == f"w{table.token_id[0]}"
    first, second, third = repr(found).splitlines()
    assert first == "TokenEffects(de-embedding through 0.1 of 2 features, 3 tokens at either end)"
    assert second.startswith(f"  1_4: 'w{found.top_ids[0, 0]}' {found.top[0, 0]:+.2f}, ")
    assert third.startswith("  1_2: ")
    assert repr(pb.deembed(lens, sets, 1, None)).endswith("  ...")
    assert found.to_dict()["features"]["1_2"]["bottom"][0] == (f"w{found.bottom_ids[1, 0]}", float(found.bottom[1, 0]))


def test_one_can_look_at_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lens = build("gpt2")
    pb.logit_effects(lens, models.random_set(lens), 1, [4, 2], k=3).draw(tmp_path / "ends.svg")
    drawn = (tmp_path / "ends.svg").read_text()
    assert all(f"<!-- {word} -->" in drawn for word in ("logit effects", "1_4", "1_2"))


def test_what_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = build("gpt2")
    sets = models.random_set(lens)
    with pytest.raises(ValueError, match="ask with full=True"):
        pb.deembed(lens, sets, 1, 0).on([3])
    with pytest.raises(ValueError, match="k must be at least 1"):
        pb.deembed(lens, sets, 1, 0, k=0)
    with pytest.raises(ValueError, match="final_scale is the denominator"):
        pb.logit_effects(lens, sets, 1, 0, final_scale=0)
    with pytest.raises(ValueError, match="z-scores have no scale; leave out final_scale"):
        pb.logit_effects(lens, sets, 1, 0, final_scale=2.0, zscore=True)
    for measure in ("zscore", "whiten"):
        with pytest.raises(ValueError, match="centre the unembeddings; leave out demean=False"):
            pb.logit_effects(lens, sets, 1, 0, demean=False, **{measure: True})
    with pytest.raises(ValueError, match="writes above what the target reads"):
        pb.deembed(lens, sets, 1, 0, heads=(2, 0))
    monkeypatch.setattr("pullback.attribution.pullbacks.effects.DENSE", 1999)
    with pytest.raises(ValueError, match="40 features by 50 tokens are too many"):
        pb.logit_effects(lens, sets, 1, None, full=True)
