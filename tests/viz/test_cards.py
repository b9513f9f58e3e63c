"""Feature cards: the hand-written checks name the place, and a page holds the cards of its own features only."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from pullback.viz import CARD_SCHEMA, graph_page, validate_card
from pullback.viz.cards import cards_of, feature_name
from tests.viz import payloads
from tests.viz.test_page import data_of

CAPITAL = payloads.capital()
FEATURE = next(node for node in CAPITAL["nodes"] if node["kind"] == "feature")
EXAMPLE = {"tokens": ["a", "b"], "activations": [0.0, 1.0]}
GOOD: list[dict[str, Any]] = [
    {},
    {"examples": [EXAMPLE, EXAMPLE | {"train_token_ind": 1}]},
    {"sampled": [{"name": "0 to 1", "examples": [EXAMPLE]}]},
    {"top_logits": ["a", ["b", 1.0]], "bottom_logits": [], "deembedding": [["c", -1]]},
    {"density": None, "histogram": None, "quantiles": None},
    {"density": 0.5, "histogram": {"counts": [1, 2], "edges": [0.0, 1.0, 2.0]}, "quantiles": [[0.5, 1.0], 2.0]},
]
BAD = [
    ([], "the payload must be an object, got []"),
    ({"density": 1.5}, "density must lie between 0 and 1, got 1.5"),
    ({"examples": [{"tokens": ["a"]}]}, "examples[0].activations is required but missing"),
    (
        {"examples": [EXAMPLE | {"activations": [1.0]}]},
        "examples[0].activations must have one number a token, 2 tokens",
    ),
    (
        {"examples": [EXAMPLE | {"train_token_ind": 2}]},
        "examples[0].train_token_ind must be one of the 2 tokens, got 2",
    ),
    ({"top_logits": [["a", "b"]]}, "top_logits[0][1] must be a number, got 'b'"),
    (
        {"sampled": [{"name": "0 to 1", "examples": [EXAMPLE | {"train_token_ind": 2}]}]},
        "sampled[0].examples[0].train_token_ind must be one of the 2 tokens, got 2",
    ),
    ({"deembedding": [["a"]]}, "deembedding[0] must have at least 2 item, got 1"),
    ({"histogram": {"counts": [1, 2], "edges": [0, 1]}}, "histogram.edges must be 3 ends of 2 bins, got 2"),
    ({"quantiles": [float("nan")]}, "quantiles[0] must be finite, got nan"),
]


@pytest.mark.parametrize("card", GOOD)
def test_cards_pass(card: dict[str, Any]) -> None:
    validate_card(card)
    jsonschema.validate(card, CARD_SCHEMA)


@pytest.mark.parametrize(("card", "message"), BAD, ids=[message for _, message in BAD])
def test_offences_are_named(card: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^feature card '1_2': ") as caught:
        validate_card(card, "feature card '1_2'")
    assert str(caught.value).removeprefix("feature card '1_2': ").startswith(message)


def test_page_holds_the_cards_of_its_features() -> None:
    by_node, by_feature = {"density": 0.25}, {"density": 0.5}
    name = feature_name(FEATURE)
    assert FEATURE["node_id"] == f"{name}_{FEATURE['ctx_idx']}"
    cards = {FEATURE["node_id"]: by_node, name: by_feature, "77_1": {"density": 0.1}}
    assert data_of(graph_page(CAPITAL, cards=cards))["cards"] == {FEATURE["node_id"]: by_node, name: by_feature}
    assert "cards" not in data_of(graph_page(CAPITAL))


def test_cards_may_be_read_when_asked_for() -> None:
    class Lazy(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            return {"density": 0.5} if key == feature_name(FEATURE) else default

    assert cards_of(CAPITAL["nodes"], Lazy()) == {feature_name(FEATURE): {"density": 0.5}}


def test_cards_of_another_graph_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the 1 is of a feature of this graph"):
        graph_page(CAPITAL, cards={"77_1": {}})
    with pytest.raises(ValueError, match=rf"feature card '{FEATURE['node_id']}': density must lie between"):
        graph_page(CAPITAL, cards={FEATURE["node_id"]: {"density": 2}})
