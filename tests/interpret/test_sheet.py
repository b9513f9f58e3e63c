"""A blind sheet holds nothing that tells its arms apart, and its score is that of the key."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pullback as pb
from pullback import cli
from pullback.interpret import PUBLISHED_RATINGS
from pullback.interpret.sheet.score import compared
from pullback.interpret.sheet.statistics import difference, fisher_exact, wilson
from pullback.lens import as_lens
from tests import models
from tests.interpret.test_dashboard import autoencoder
from tests.interpret.test_pack import CORPUS, activations

LAYER, N = 1, 12


@pytest.fixture(scope="module")
def lens() -> Any:
    return as_lens(models.build("LN-gqa-standard-plain"))


@pytest.fixture(scope="module")
def arms(lens: Any) -> Any:
    drawn = models.random_set(lens, layers=[LAYER])
    return {"alpha-arm": drawn, "beta-arm": pb.TranscoderSet({LAYER: autoencoder(models.random_set(lens, 1)[LAYER])})}


@pytest.fixture(scope="module")
def made(lens: Any, arms: Any, tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("sheet")
    key = pb.make_sheet(lens, arms, LAYER, CORPUS, folder / "s.html", folder / "k.json", n=N, n_top=4, window=(3, 2))
    return folder, key


def items_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "s.html").read_text()
    start = text.index('type="application/json">') + len('type="application/json">')
    return json.loads(text[start : text.index("</script>", start)])["items"]


def test_the_page_gives_nothing_away(made: Any) -> None:
    folder, key = made
    assert key == json.loads((folder / "k.json").read_text())
    text, items = (folder / "s.html").read_text(), items_of(folder)
    assert not any(word in text for word in (*key["arms"], "hook_mlp_out", "mlp.hook_in"))
    assert len(items) == 2 * N
    for item in items:
        assert item.keys() == {"examples", "sampled"}
        assert all(group["name"].startswith("Weaker, group ") for group in item["sampled"])
        values = [value for example in item["examples"] for value in example["activations"]]
        assert max(values) == 1.0


def test_the_key_leads_to_the_features(lens: Any, arms: Any, made: Any) -> None:
    folder, key = made
    by_arm = {name: [item["feature"] for item in key["items"] if item["arm"] == name] for name in arms}
    assert all(len(set(own)) == N for own in by_arm.values())
    names = [item["arm"] for item in key["items"]]
    assert names not in (sorted(names), sorted(names, reverse=True)), "the arms are shuffled"
    acts = activations(lens, arms["alpha-arm"], LAYER)
    for item, origin in zip(items_of(folder), key["items"], strict=True):
        if origin["arm"] == "alpha-arm":
            own = acts[..., origin["feature"]]
            at, where = own.amax(1).max(0)
            shown = item["examples"][0]
            position = int(own[where].argmax())
            assert shown["tokens"][shown["train_token_ind"]] == lens.to_str_tokens(CORPUS[where, [position]])[0]
            shares = [example["activations"][example["train_token_ind"]] for example in item["examples"]]
            strongest = own.amax(1).sort(descending=True).values / at
            assert shares == pytest.approx(strongest[strongest > 0][:4].tolist(), abs=2e-3)
    assert key["arms"]["alpha-arm"]["live"] == int(((acts != 0).flatten(0, 1).double().mean(0) > 1e-4).sum())


def ratings_for(key: dict[str, Any], rule: Any) -> dict[str, Any]:
    return {"format": "pullback-ratings", "sheet": key["sheet"], "ratings": [rule(item) for item in key["items"]]}


def test_scores_are_counted_by_arm(made: Any) -> None:
    _, key = made

    def rule(item: dict[str, Any]) -> dict[str, Any]:
        if item["arm"] == "alpha-arm":
            return {"rating": "interpretable", "context_free": item["feature"] % 2 == 0, "note": ""}
        return {"rating": [None, "maybe", "uninterpretable"][item["feature"] % 3], "context_free": True, "note": ""}

    score = pb.score_sheet(ratings_for(key, rule), key)
    ours = [item["feature"] for item in key["items"] if item["arm"] == "alpha-arm"]
    theirs = [item["feature"] % 3 for item in key["items"] if item["arm"] == "beta-arm"]
    assert score.counts["alpha-arm"] == {
        "interpretable": N,
        "maybe": 0,
        "uninterpretable": 0,
        "unrated": 0,
        "context_free": sum(f % 2 == 0 for f in ours),
    }
    assert score.counts["beta-arm"] == {
        "interpretable": 0,
        "maybe": theirs.count(1),
        "uninterpretable": theirs.count(2),
        "unrated": theirs.count(0),
        "context_free": theirs.count(1) + theirs.count(2),
    }
    rated = N - theirs.count(0)
    assert score.comparisons["interpretable"].difference == 1
    assert score.comparisons["interpretable"].p == pytest.approx(fisher_exact(N, N, 0, rated))
    assert "alpha-arm" in str(score)
    assert "Fisher" in str(score)
    unrated = ratings_for(key, lambda item: {"rating": None})
    assert pb.score_sheet(unrated, key).comparisons == {}


def test_other_files_are_refused(made: Any, tmp_path: Path, lens: Any, arms: Any) -> None:
    folder, key = made
    ratings = ratings_for(key, lambda item: {"rating": "maybe"})
    with pytest.raises(ValueError, match="ratings and key exchanged"):
        pb.score_sheet(key, ratings)
    with pytest.raises(ValueError, match="ratings of sheet x and a key of sheet"):
        pb.score_sheet(ratings | {"sheet": "x"}, key)
    with pytest.raises(ValueError, match="ratings are interpretable, maybe"):
        pb.score_sheet(ratings_for(key, lambda item: {"rating": "good"}), key)
    with pytest.raises(ValueError, match=r"s\.html is no JSON"):
        pb.score_sheet(folder / "s.html", key)
    for wrong, message in (
        ({"arms": {"one": arms["alpha-arm"]}}, r"compares two arms, got \['one'\]"),
        ({"layer": 0}, "'alpha-arm' has no features of layer 0"),
        ({"key": tmp_path / "s.html"}, "a file of its own"),
        ({"n": 99}, "99 were asked for"),
    ):
        given = {"arms": arms, "layer": LAYER, "page": tmp_path / "s.html", "key": tmp_path / "k.json", **wrong}
        with pytest.raises(ValueError, match=message):
            pb.make_sheet(lens, tokens=CORPUS, **given)
    assert list(tmp_path.iterdir()) == []


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_fisher_by_counting_all_tables(n: int, m: int, data: Any) -> None:
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    tables = [(x, y) for x, y in product(range(n + 1), range(m + 1)) if x + y == a + b]
    chance = {(x, y): Fraction(comb(n, x) * comb(m, y), comb(n + m, a + b)) for x, y in tables}
    assert sum(chance.values()) == 1
    expected = sum(p for p in chance.values() if p <= chance[a, b])
    assert fisher_exact(a, n, b, m) == pytest.approx(float(expected), rel=1e-12)


def test_known_values() -> None:
    assert fisher_exact(3, 4, 1, 4) == pytest.approx(34 / 70)  # the lady tasting tea
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)  # Newcombe's own examples
    assert difference(56, 70, 48, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    for a, b in product(range(5), repeat=2):
        d, low, high = difference(a, 4, b, 4)
        assert -1 <= low <= d <= high <= 1
        assert difference(b, 4, a, 4) == pytest.approx((-d, -high, -low))


def test_the_published_ratings() -> None:
    counts = {arm: {"unrated": 0, **own} for arm, own in PUBLISHED_RATINGS.items()}
    assert [sum(own[r] for r in ("interpretable", "maybe", "uninterpretable")) for own in counts.values()] == [50, 50]
    found = compared(counts)
    assert found["interpretable"].difference == pytest.approx(0.06)
    assert found["interpretable"].p > 0.6  # no difference to speak of, as the paper says
    assert found["context_free"].p < 0.05


def test_the_commands(tmp_path: Path, capsys: Any) -> None:
    pb.zoo.transcoders("tiny-mix").save(tmp_path / "a")
    (tmp_path / "d.txt").write_text("the capital of texas is\nthe capital of ohio is\ndallas is in texas\n")
    page, key = tmp_path / "s.html", tmp_path / "k.json"
    where = ["--out", str(page), "--key", str(key), "--data", str(tmp_path / "d.txt")]
    sets = ["--arm", "first", str(tmp_path / "a"), "--arm", "second", str(tmp_path / "a")]
    assert cli.main(["sheet", "make", "tiny-mix", "--layer", "0", *sets, *where, "--n", "3"]) == 0
    assert "6 features; first has" in capsys.readouterr().out
    ratings = ratings_for(json.loads(key.read_text()), lambda item: {"rating": "maybe", "context_free": None})
    (tmp_path / "r.json").write_text(json.dumps(ratings))
    scored = ["sheet", "score", str(tmp_path / "r.json"), str(key), "--json", str(tmp_path / "out.json")]
    assert cli.main(scored) == 0
    assert "interpretable: first less second +0.0%" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["counts"]["first"]["maybe"] == 3
    assert cli.main([*scored[:2], str(key), str(tmp_path / "r.json")]) == 2
    assert torch.is_grad_enabled()
