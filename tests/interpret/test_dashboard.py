"""Dashboards against dense activations of the same corpus, and against plain matrix products of the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pullback as pb
from pullback import cli
from pullback.interpret.dashboard.live import drawn
from pullback.lens import as_lens
from pullback.viz import validate_dashboard
from tests import models
from tests.interpret.test_pack import CORPUS, activations

LAYER = 2
IDS = [11, 3, 27]
SHAPE: dict[str, Any] = {"n_top": 4, "n_bands": 3, "n_per_band": 100, "window": (3, 2), "k": 5}


@pytest.fixture(scope="module")
def lens() -> Any:
    return as_lens(models.build("LN-gqa-standard-plain"))


@pytest.fixture(scope="module")
def sets(lens: Any) -> Any:
    return models.random_set(lens, layers=[0, 2])


@pytest.fixture(scope="module")
def board(lens: Any, sets: Any) -> Any:
    return pb.dashboard(lens, sets, LAYER, IDS, CORPUS, batch_size=7, **SHAPE)


@pytest.fixture(scope="module")
def acts(lens: Any, sets: Any) -> torch.Tensor:
    return activations(lens, sets, LAYER)


def test_what_the_corpus_shows(board: Any, acts: torch.Tensor) -> None:
    validate_dashboard(board.content)
    assert board.features == [(LAYER, f) for f in IDS]
    assert board.content["source"] == {"kind": "corpus", "tokens": CORPUS.numel()}
    for f in IDS:
        own = acts[..., f]
        assert board[f]["density"] == pytest.approx(float((own != 0).float().mean()))
        assert sum(board[f]["histogram"]["counts"]) == int((own != 0).sum())
        tops = [example["activations"][example["train_token_ind"]] for example in board[f]["examples"]]
        strongest = own.amax(1).sort(descending=True).values
        assert tops == pytest.approx(strongest[:4].tolist(), abs=1e-4)


def test_bands_share_out_the_contexts_by_strength(board: Any, acts: torch.Tensor) -> None:
    for f in IDS:
        strongest = acts[..., f].amax(1)
        largest, edges = float(strongest.max()), [1.0, 2 / 3, 1 / 3, 0.0]
        for (high, low), band in zip(zip(edges, edges[1:], strict=False), board[f]["sampled"], strict=True):
            inside = strongest[(strongest > low * largest) & (strongest <= high * largest)]
            shown = [example["activations"][example["train_token_ind"]] for example in band["examples"]]
            assert shown == pytest.approx(inside.sort(descending=True).values.tolist(), abs=1e-4)


def test_a_full_band_shows_some_of_its_contexts(lens: Any, sets: Any, acts: torch.Tensor) -> None:
    few = pb.dashboard(lens, sets, LAYER, IDS, CORPUS, **SHAPE | {"n_per_band": 2})
    for f in IDS:
        strongest = acts[..., f].amax(1)
        for k, band in enumerate(few[f]["sampled"]):
            low, high = (float(strongest.max()) * share / 3 for share in (2 - k, 3 - k))
            n = int(((strongest > low) & (strongest <= high)).sum())
            assert len(band["examples"]) == min(2, n)


def test_quantile_bands_are_those_of_packs(lens: Any, sets: Any, tmp_path: Path) -> None:
    shape = {"n_top": 4, "window": (3, 2)}
    pb.write_feature_pack(lens, sets, CORPUS, tmp_path / "p", n_quantiles=3, n_per_quantile=9, **shape)
    read = pb.dashboard(lens, sets, LAYER, IDS, CORPUS, bands="quantile", n_bands=3, n_per_band=9, **shape)
    packed = pb.dashboard(lens, sets, LAYER, IDS, pack=tmp_path / "p")
    for f in IDS:
        for name in ("examples", "histogram", "density", "quantiles", "top_logits", "pullbacks"):
            assert read[f][name] == packed[f][name]
        assert [g["name"] for g in read[f]["sampled"]] == [g["name"] for g in packed[f]["sampled"]]
        assert "neighbours" not in packed[f]
    with pytest.raises(ValueError, match="has no feature 3 of layer 1; is it a pack of this set"):
        pb.dashboard(lens, models.random_set(lens), 1, 3, pack=tmp_path / "p")


def test_what_is_active_together(board: Any, acts: torch.Tensor) -> None:
    on = (acts != 0).flatten(0, 1).double()
    for f in IDS:
        correlation = torch.corrcoef(on.T)[f].nan_to_num(-2)
        correlation[f] = -2
        correlation[(on[:, [f]] * on).sum(0) == 0] = -2
        best = correlation.sort(descending=True).values[:5]
        found = board[f]["neighbours"]
        assert [n["phi"] for n in found] == pytest.approx([v for v in best.tolist() if v > -2], abs=1e-5)
        for n in found:
            both = (on[:, f] * on[:, n["feature"]]).sum()
            assert n["share"] == pytest.approx(float(both / on[:, f].sum()))
            assert n["density"] == pytest.approx(float(on[:, n["feature"]].mean()))
        assert board[f]["beside"] == pytest.approx(float(on[on[:, f] > 0].sum(1).mean() - 1))


def test_what_the_weights_say(lens: Any, sets: Any, board: Any) -> None:
    words = lens.to_str_tokens(torch.arange(lens.d_vocab))
    for f in IDS:
        w = lens.layer_weights(LAYER).ln2.w
        reads = sets[LAYER].W_enc[f].detach() * (1.0 if w is None else w)
        reads = reads - reads.mean()
        values, ids = (lens.W_E @ reads).topk(5)
        assert [token for token, _ in board[f]["deembedding"]] == [words[i] for i in ids.tolist()]
        assert [value for _, value in board[f]["deembedding"]] == pytest.approx(values.tolist(), rel=1e-4)
        assert board[f]["bottom_deembedding"][0][1] == pytest.approx(float((lens.W_E @ reads).min()), rel=1e-4)
        assert len(board[f]["heads"]) == lens.n_heads * (LAYER + 1)
        for item in board[f]["heads"]:
            w = lens.layer_weights(item["layer"])
            kv = item["head"] * w.W_V.shape[0] // w.W_O.shape[0]
            v = w.W_V[kv] @ (w.W_O[item["head"]] @ reads)
            v = v if w.ln1.w is None else v * w.ln1.w
            assert item["norm"] == pytest.approx(float((v - v.mean()).norm()), rel=1e-4)
        below = sets[0].W_dec.detach() @ reads
        order = below.abs().sort(descending=True).indices[:5]
        assert [(item["layer"], item["feature"]) for item in board[f]["pullbacks"]] == [(0, i) for i in order.tolist()]
        weights = [item["weight"] for item in board[f]["pullbacks"]]
        assert weights == pytest.approx(below[order].tolist(), rel=1e-4)
        assert board[f]["feeds"] == []


def test_prompts(lens: Any, sets: Any) -> None:
    prompt = CORPUS[4]
    board = pb.dashboard(lens, sets, LAYER, IDS, prompts=[prompt])
    dense = activations(lens, sets, LAYER)[4]
    with lens.replace(sets, [0]):
        x = lens.mlp_io(prompt[None], [LAYER])[LAYER][0]
    substituted = sets.encode(LAYER, x).to_dense()
    for f in IDS:
        (found,) = board[f]["prompts"]
        assert found["tokens"] == lens.to_str_tokens(prompt)
        assert found["activations"] == pytest.approx(dense[:, f].tolist(), abs=1e-5)
        assert found["substituted"] == pytest.approx(substituted[:, f].tolist(), abs=1e-5)
        assert not {"examples", "density"} & board[f].keys()


def test_features_by_lot_are_alive(lens: Any, sets: Any, acts: torch.Tensor) -> None:
    density = (acts != 0).flatten(0, 1).double().mean(0)
    threshold = float(density.median())
    live = pb.live_features(lens, sets, LAYER, CORPUS, min_density=threshold)
    assert live.tolist() == (density > threshold).nonzero()[:, 0].tolist()
    boards = [
        pb.dashboard(lens, sets, LAYER, None, CORPUS, n_random=4, min_density=threshold, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert boards[0].features == boards[1].features != boards[2].features
    assert all(f in live for board in boards for _, f in board.features)
    with pytest.raises(ValueError, match=f"999 were asked for, and {len(live)} are alive"):
        drawn(live, 999, 0)


def autoencoder(tc: pb.Transcoder) -> pb.Transcoder:
    site = "hook_mlp_out"
    return pb.Transcoder(
        tc.W_enc, tc.b_enc, tc.W_dec, tc.b_dec, activation=pb.ReLU(), hook_in=site, hook_out=site, reading=tc.reading
    )


def test_autoencoders_read_no_stream(lens: Any) -> None:
    sets = pb.TranscoderSet({1: autoencoder(models.random_set(lens, layers=[1])[1])})
    board = pb.dashboard(lens, sets, 1, 5, CORPUS)
    assert {"examples", "top_logits", "neighbours"} <= board[5].keys()
    assert not {"deembedding", "heads", "pullbacks"} & board[5].keys()


def test_refusals(lens: Any, sets: Any, tmp_path: Path) -> None:
    for wrong, message in (
        ({"features": [1, 1]}, "different ids in 0..39"),
        ({"features": 40}, "different ids in 0..39"),
        ({"features": [1.5]}, r"features are whole numbers, got \[1.5\]"),
        ({"prompts": "a b"}, r"prompts is one string; give a list of prompts, \['a b'\]"),
        ({"window": (1,)}, r"window must be two numbers from 0 on, got \(1,\)"),
        ({"layer": 1}, r"no features of layer 1; the set has layers \[0, 2\]"),
        ({"features": None, "tokens": None}, "which features are alive shows in a corpus"),
        ({"bands": "log"}, "bands are uniform, quantile"),
        ({"pack": tmp_path}, "a corpus or a pack"),
        ({"n_top": 0}, "n_top=0"),
        ({"tokens": None, "context_size": 8}, "are of a corpus: give tokens, or leave them out"),
    ):
        given = {"layer": LAYER, "features": IDS, "tokens": CORPUS, **wrong}
        with pytest.raises(ValueError, match=message):
            pb.dashboard(lens, sets, **given)


def test_files(board: Any, tmp_path: Path) -> None:
    board.to_json(tmp_path / "d.json")
    assert json.loads((tmp_path / "d.json").read_text()) == board.to_dict() == board.content
    assert board.to_html(tmp_path / "d.html") == (tmp_path / "d.html").read_text()
    with pytest.raises(KeyError, match="feature 1 is not on this dashboard"):
        board[1]


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "d.txt").write_text("the capital of texas is\nthe capital of ohio is\n")
    common = ["dashboard", "tiny-mix", "--layer", "1", "--data", str(tmp_path / "d.txt")]
    assert cli.main([*common, "--n-random", "3", "--out", str(tmp_path / "d.html")]) == 0
    assert "features" in capsys.readouterr().out
    assert '"train_token_ind"' in (tmp_path / "d.html").read_text()
    out = str(tmp_path / "d.json")
    assert cli.main([*common, "--features", "5", "9", "--prompts", "ohio", "--blind", "--out", out]) == 0
    assert f"wrote {out}: features 5 9 of layer 1" in capsys.readouterr().out
    written = json.loads((tmp_path / "d.json").read_text())
    assert [part["feature"] for part in written["features"]] == [5, 9]
    assert written["blind"] == {"revealed": False, "steps": [{"step": "prompt", "what": "ohio"}]}
    assert "examples" not in written["features"][0]
    assert cli.main([*common, "--out", str(tmp_path / "d.png")]) == 2
    assert "must end in .html or .json" in capsys.readouterr().err


def test_cross_layer_transcoders(lens: Any) -> None:
    sets = models.random_clt(lens, layers=[0, 2])
    board = pb.dashboard(lens, sets, 0, IDS, CORPUS, prompts=[CORPUS[0]], **SHAPE)
    writes = sum(sets.decoder(0, dst) for dst in sets.targets(0)).detach()
    for f in IDS:
        said = lens.ln_final.pullback((lens.W_U - lens.W_U.mean(1, keepdim=True)).T, torch.ones(1, 1)) @ writes[f]
        assert [value for _, value in board[f]["top_logits"]] == pytest.approx(said.topk(5).values.tolist(), rel=1e-4)
        assert {item["layer"] for item in board[f]["feeds"]} == {2}


def test_a_sibling_of_the_model_is_accepted_when_told_so(lens: Any) -> None:
    sibling = as_lens(models.build("LN-gqa-standard-plain", seed=5))
    sets = models.random_set(lens)
    with pytest.raises(ValueError, match="strict=False"):
        pb.dashboard(sibling, sets, 1, 3, prompts=[CORPUS[0]])
    study = pb.BlindStudy(sibling, sets, 1, 3, prompts=[CORPUS[0]], strict=False)
    own = study.dashboard[3]["prompts"][0]["activations"]
    assert study.ask(CORPUS[0])[3].tolist() == pytest.approx(own)
    assert study.graph(CORPUS[0], position=2).n_edges > 0
