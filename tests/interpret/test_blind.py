"""A blind study shows no example before it is revealed, and says how it went."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import pullback as pb
from pullback.interpret import BLIND_CASE_STUDIES
from pullback.zoo.tinymix.tasks import two_hop_prompts

CITIES = [prompt.city for prompt in two_hop_prompts()]
CORPUS = [f"{city} is in" for city in CITIES]
FEATURE = 229  # clarksville


@pytest.fixture
def study() -> Any:
    model, sets = pb.zoo.load("tiny-mix"), pb.zoo.transcoders("tiny-mix")
    return pb.BlindStudy(model, sets, 0, FEATURE, CORPUS)


def everything(study: Any) -> str:
    shown = [repr(study), study.to_html(), study._repr_html_(), json.dumps(study.to_dict()), repr(vars(study))]
    return "\n".join([*shown, json.dumps(study.dashboard.content)])


def test_examples_show_only_when_revealed(study: Any) -> None:
    blind = study.to_dict()["features"][0]
    assert not {"examples", "sampled"} & blind.keys()
    assert {"density", "histogram", "deembedding", "top_logits", "feeds", "heads"} <= blind.keys()
    assert "clarksville is" not in everything(study)
    assert '"train_token_ind"' not in everything(study)
    board = study.reveal()
    assert board[FEATURE]["examples"][0]["tokens"][1] == "clarksville"
    assert "train_token_ind" in board.to_html()
    assert "train_token_ind" in json.dumps(board.to_dict())


def test_it_says_how_it_was_used(study: Any) -> None:
    assert study.used() == "examples not seen; used nothing but the weights"
    table = study.ask("clarksville is in")
    assert list(table.columns) == ["token", FEATURE]
    assert int(table[FEATURE].argmax()) == list(table["token"]).index("clarksville")
    study.ask("dallas is in")
    study.note("one city")
    graph = study.graph("clarksville is in", max_feature_nodes=20)
    assert list(graph.to_pandas()[0].query("kind == 'feature'")["id"]) == [f"0_{FEATURE}_1"]  # none lies below layer 0
    assert study.used() == "examples not seen; used 2 prompts, 1 graph, 1 note"
    revealed = study.reveal()
    study.ask("portland is in")
    assert study.used() == "examples revealed after 2 prompts, 1 graph, 1 note"
    assert [step["step"] for step in study.steps] == ["prompt", "prompt", "note", "graph", "reveal", "prompt"]
    assert revealed.content["blind"]["steps"][-1] == {"step": "reveal", "what": "2 prompts, 1 graph, 1 note"}
    assert len(study.to_dict()["features"][0]["prompts"]) == 3
    assert study.to_dict()["blind"]["revealed"]
    assert "examples" not in study.to_dict()["features"][0]


def test_graphs_are_of_the_studied_features(study: Any) -> None:
    with pytest.raises(ValueError, match=r"one of the features of this study, \[229\], got 3"):
        study.graph("dallas is in", 3)
    graph = study.graph("clarksville is in", position=2)
    assert graph.check() < 1e-4
    model, sets = pb.zoo.load("tiny-mix"), pb.zoo.transcoders("tiny-mix")
    several = pb.BlindStudy(model, sets, 0, [1, 2], prompts=["dallas is in"])
    assert several.used() == "examples not seen; used 1 prompt"
    with pytest.raises(ValueError, match="name one of the features"):
        several.graph("dallas is in")


def test_published_case_studies() -> None:
    by_outcome = {
        o: [c.feature for c in BLIND_CASE_STUDIES if c.outcome == o] for o in ("success", "mostly", "failure")
    }
    assert by_outcome == {"success": [355, 1447, 6569, 4911, 6414], "mostly": [235, 2725], "failure": [479, 9030]}
    assert all((c.model, c.layer) == ("gpt2", 8) for c in BLIND_CASE_STUDIES)
    first = BLIND_CASE_STUDIES[0].activations
    assert [a.activation for a in first] == [12.484, 12.13]
    assert torch.tensor([a.substituted for a in first]).tolist() == pytest.approx([4.855, 4.906])
