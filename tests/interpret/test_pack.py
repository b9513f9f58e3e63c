"""Cards of all features against dense activations of the same corpus."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch

import pullback as pb
from pullback import cli
from pullback.interpret.features import pack as packs
from pullback.interpret.features.contexts import Contexts
from pullback.lens import as_lens
from pullback.viz.cards import validate_card
from tests import models

CORPUS = torch.randint(0, models.VOCAB - 2, (30, 9), generator=torch.Generator().manual_seed(3))
SHAPE: dict[str, Any] = {"n_top": 4, "n_quantiles": 2, "n_per_quantile": 3, "window": (3, 2), "n_logits": 5}


@pytest.fixture(scope="module")
def lens() -> Any:
    return as_lens(models.build("LN-gqa-standard-plain"))


@pytest.fixture(scope="module", params=["per layer", "cross-layer"])
def written(request: Any, lens: Any, tmp_path_factory: Any) -> Any:
    make = models.random_set if request.param == "per layer" else models.random_clt
    sets = make(lens, layers=[0, 2])
    folder = tmp_path_factory.mktemp("pack")
    pb.write_feature_pack(lens, sets, CORPUS, folder / "p", batch_size=7, **SHAPE)
    return sets, pb.FeaturePack(folder / "p")


def activations(lens: Any, sets: Any, layer: int) -> torch.Tensor:
    """(n, T, F)"""
    x = lens.mlp_io(CORPUS, [layer])[layer][0]
    return sets.encode(layer, x).to_dense().view(*CORPUS.shape, -1).float()


@pytest.mark.parametrize("layer", [0, 2])
def test_statistics(lens: Any, written: Any, layer: int) -> None:
    sets, pack = written
    assert pack.layers == [0, 2]
    acts = activations(lens, sets, layer)
    assert pack.n_features(layer) == acts.shape[2]
    for f in range(acts.shape[2]):
        record = pack.record(layer, f)
        own = acts[..., f][acts[..., f] != 0]
        assert record["index"] == f
        assert record["activation_frequency"] == pytest.approx(len(own) / CORPUS.numel())
        assert sum(record["histogram"]) == len(own)
        if len(own):
            assert (record["act_min"], record["act_max"]) == pytest.approx((float(own.min()), float(own.max())))
            width = record["histogram_max"] / len(record["histogram"])
            for share, value in zip((0.1, 0.25, 0.5, 0.75, 0.9, 0.99), record["quantile_values"], strict=True):
                assert (own <= value).float().mean() >= share - 1e-6
                assert (own < value - width).float().mean() <= share + 1e-6


@pytest.mark.parametrize("layer", [0, 2])
def test_examples_are_the_strongest_contexts(lens: Any, written: Any, layer: int) -> None:
    sets, pack = written
    acts = activations(lens, sets, layer)
    words = lens.to_str_tokens(torch.arange(lens.d_vocab))
    for f in range(acts.shape[2]):
        strongest, position = acts[..., f].max(1)
        order = torch.argsort(strongest, descending=True, stable=True)
        order = order[strongest[order] > 0][:4]
        validate_card(pack.card(layer, f))
        examples = pack.card(layer, f)["examples"]
        assert len(examples) == len(order)
        for example, context in zip(examples, order.tolist(), strict=True):
            at = int(position[context])
            shown = range(max(0, at - 3), min(CORPUS.shape[1], at + 3))
            assert example["tokens"] == [words[t] for t in CORPUS[context, shown.start : shown.stop].tolist()]
            expected = acts[context, shown.start : shown.stop, f].tolist()
            assert example["activations"] == pytest.approx(expected, abs=1e-4)
            assert example["train_token_ind"] == at - shown.start


def test_a_sample_of_the_others_by_strength(lens: Any, written: Any) -> None:
    sets, pack = written
    acts = activations(lens, sets, 0)
    for f in range(acts.shape[2]):
        n_active = int((acts[..., f].amax(1) > 0).sum())
        groups = pack.card(0, f)["sampled"]
        strengths = [max(e["activations"]) for group in groups for e in group["examples"]]
        assert len(strengths) == min(6, n_active)
        assert strengths == sorted(strengths, reverse=True)
        assert [g["name"] for g in groups] == ["Subsample interval 0", "Subsample interval 1"][: len(groups)]


def test_what_features_say(lens: Any, written: Any) -> None:
    sets, pack = written
    words = lens.to_str_tokens(torch.arange(lens.d_vocab))
    unembedding = lens.W_U - lens.W_U.mean(1, keepdim=True)
    writes = sum(sets.decoder(0, dst) for dst in sets.targets(0))
    w = lens.ln_final.w
    effects = (writes - writes.mean(1, keepdim=True)) @ ((w[:, None] * unembedding) if w is not None else unembedding)
    for f in range(0, len(effects), 7):
        card = pack.card(0, f)
        assert card["top_logits"] == [words[i] for i in effects[f].topk(5).indices.tolist()]
        assert card["bottom_logits"] == [words[i] for i in (-effects[f]).topk(5).indices.tolist()]


def test_batches_and_forgetting_change_nothing(
    lens: Any, written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets, pack = written
    monkeypatch.setattr(Contexts, "full", property(lambda self: True))
    pb.write_feature_pack(lens, sets, CORPUS, tmp_path / "p", batch_size=2, **SHAPE)
    other = pb.FeaturePack(tmp_path / "p")
    for f in range(pack.n_features(0)):
        first, second = pack.card(0, f), other.card(0, f)
        assert first | {"sampled": None} == second | {"sampled": None}


def test_masked_tokens_and_bos_do_not_count(lens: Any, tmp_path: Path) -> None:
    sets = models.random_set(lens, activation="relu")
    mask = torch.ones_like(CORPUS, dtype=torch.bool)
    mask[:, 5:] = False
    pb.write_feature_pack(lens, sets, CORPUS, tmp_path / "p", mask=mask, **SHAPE)
    acts = activations(lens, sets, 0)[:, :5]
    for f in range(0, 40, 5):
        record = pb.FeaturePack(tmp_path / "p").record(0, f)
        assert record["activation_frequency"] == pytest.approx(float((acts[..., f] != 0).float().mean()))
        assert all(len(e["tokens"]) <= 5 for q in record["examples_quantiles"] for e in q["examples"])
    with pytest.raises(ValueError, match="no token counts"):
        pb.write_feature_pack(lens, sets, CORPUS, tmp_path / "q", mask=mask & False, **SHAPE)
    silent = models.random_set(lens, activation="jumprelu")
    for layer in silent:
        silent[layer].activation.theta.fill_(1e6)
    pb.write_feature_pack(lens, silent, CORPUS, tmp_path / "silent", **SHAPE)
    record = pb.FeaturePack(tmp_path / "silent").record(0, 0)
    assert (record["activation_frequency"], record["histogram"], record["quantile_values"]) == (0.0, [], [])
    with pytest.raises(ValueError, match=r"window must be two numbers from 0 on, got \(1,\)"):
        pb.write_feature_pack(lens, sets, CORPUS, tmp_path / "q", window=(1,))
    with pytest.raises(ValueError, match="n_top=0"):
        pb.write_feature_pack(lens, sets, CORPUS, tmp_path / "q", n_top=0)


def test_an_interrupt_leaves_the_old_pack(
    lens: Any, written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets, _ = written
    pb.write_feature_pack(lens, sets, CORPUS[:4], tmp_path / "p", **SHAPE)
    before = {file.name: file.read_bytes() for file in (tmp_path / "p").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(packs.zlib, "compress", lambda data: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            pb.write_feature_pack(lens, sets, CORPUS, tmp_path / "p", **SHAPE)
    assert {file.name: file.read_bytes() for file in (tmp_path / "p").iterdir()} == before


def test_damaged_packs_get_a_sentence(lens: Any, written: Any, tmp_path: Path) -> None:
    sets, pack = written
    with pytest.raises(FileNotFoundError, match="no feature pack"):
        pb.FeaturePack(tmp_path)
    for layer, feature in ((0, 40), (1, 0), (0, -1), (9, 0)):
        with pytest.raises(KeyError, match=f"no feature {feature} of layer {layer}"):
            pack.card(layer, feature)
    pb.write_feature_pack(lens, sets, CORPUS[:4], tmp_path / "p", **SHAPE)
    data = (tmp_path / "p/layer_0.bin").read_bytes()
    (tmp_path / "p/layer_0.bin").write_bytes(data[:200])
    with pytest.raises(ValueError, match="is damaged at feature 39"):
        pb.FeaturePack(tmp_path / "p").card(0, 39)
    (tmp_path / "p/index.json.gz").write_bytes(gzip.compress(b'[{"filename": 1'))
    with pytest.raises(ValueError, match=r"index\.json\.gz is damaged"):
        pb.FeaturePack(tmp_path / "p")


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "d.txt").write_text("the capital of texas is\nthe capital of ohio is\n")
    out = tmp_path / "pack"
    assert cli.main(["features", "tiny-mix", "--data", str(tmp_path / "d.txt"), "--out", str(out), "--n-top", "2"]) == 0
    said = capsys.readouterr().out
    assert "4096 features take" in said
    assert f"wrote {out}: 4096 cards of layers [0, 1, 2, 3]" in said
    assert cli.main(["features", "tiny-mix", "--data", str(tmp_path / "none.txt"), "--out", str(out)]) == 2
