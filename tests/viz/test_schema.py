"""The hand-written checks and the JSON schema accept and refuse the same payloads, and the messages name the place."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pullback.viz import GRAPH_SCHEMA, validate_payload
from tests.viz import payloads

GRAPH = payloads.capital()
SMALL = payloads.awkward()
VALID = {"capital": GRAPH, "awkward": SMALL, "bare": payloads.bare()}

ENTRY = {"layer": 1, "head": 0, "query_pos": 2, "key_pos": 1, "carried": 0.5, "pattern": 0.9, "score": 3.0, "pairs": []}

# path to the value, what to put there (REMOVE deletes it), beginning of the message after "graph payload: "
REMOVE = object()
OFFENCES = [
    (("metadata",), REMOVE, "metadata is required but missing"),
    (("qParams",), REMOVE, "qParams is required but missing"),
    (("nodes",), {}, "nodes must be an array, got {}"),
    (("metadata", "prompt_tokens"), [], "metadata.prompt_tokens must have at least 1 item, got 0"),
    (("metadata", "prompt_tokens", 1), 5, "metadata.prompt_tokens[1] must be a string, got 5"),
    (("metadata", "schema_version"), 2, "metadata.schema_version must be 1, got 2"),
    (
        ("metadata", "scores"),
        {"replacement": "high"},
        "metadata.scores.replacement must be a number or null, got 'high'",
    ),
    (("metadata", "attention"), [{}], "metadata.attention[0].layer is required but missing"),
    (
        ("metadata", "attention"),
        [ENTRY | {"pairs": [{"query": "E_1_0", "key": "E_1_0", "value": "much"}]}],
        "metadata.attention[0].pairs[0].value must be a number, got 'much'",
    ),
    (("qParams", "pinnedIds"), "0_1_2", "qParams.pinnedIds must be an array, got '0_1_2'"),
    (("qParams", "supernodes"), [[]], "qParams.supernodes[0] must have at least 1 item, got 0"),
    (("qParams", "pruningThreshold"), 80, "qParams.pruningThreshold must lie between 0 and 1.001, got 80"),
    (("nodes", 3, "ctx_idx"), "2", "nodes[3].ctx_idx must be an integer, got '2'"),
    (("nodes", 3, "ctx_idx"), True, "nodes[3].ctx_idx must be an integer, got True"),
    (("nodes", 3, "ctx_idx"), -1, "nodes[3].ctx_idx must lie between 0 and inf, got -1"),
    (("nodes", 0, "jsNodeId"), REMOVE, "nodes[0].jsNodeId is required but missing"),
    (("nodes", 0, "node_id"), "", "nodes[0].node_id must not be empty"),
    (("nodes", 0, "kind"), "supernode", "nodes[0].kind must be one of embedding, position,"),
    (("nodes", 0, "influence"), 1.5, "nodes[0].influence must lie between 0 and 1.001, got 1.5"),
    (("nodes", 0, "feature"), 0.5, "nodes[0].feature must be an integer or null, got 0.5"),
    (("links", 2, "weight"), None, "links[2].weight must be a number, got None"),
    (("links", 2), ["a", "b", 1.0], "links[2] must be an object, got ['a', 'b', 1.0]"),
]


def broken(path: tuple, value: Any) -> dict[str, Any]:
    graph = copy.deepcopy(SMALL)
    place: Any = graph
    for step in path[:-1]:
        place = place[step]
    if value is REMOVE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return graph


@pytest.mark.parametrize("name", VALID)
def test_valid_payloads_pass_both(name: str) -> None:
    validate_payload(VALID[name])
    jsonschema.validate(VALID[name], GRAPH_SCHEMA)


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(GRAPH_SCHEMA)


@pytest.mark.parametrize(("path", "value", "message"), OFFENCES, ids=[m for *_, m in OFFENCES])
def test_offences_are_refused_by_both_and_named(path: tuple, value: Any, message: str) -> None:
    graph = broken(path, value)
    with pytest.raises(ValueError, match="^graph payload: ") as caught:
        validate_payload(graph)
    assert str(caught.value).removeprefix("graph payload: ").startswith(message)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(graph, GRAPH_SCHEMA)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(-2, 2), st.sampled_from(["", "x", "feature", []])
)
PLACES = st.sampled_from(
    [
        ("metadata", "slug"),
        ("metadata", "schema_version"),
        ("metadata", "check_max_error"),
        ("qParams", "clickedId"),
        ("qParams", "pruningThreshold"),
        ("nodes", 1, "feature"),
        ("nodes", 1, "layer"),
        ("nodes", 1, "clerp"),
        ("nodes", 1, "kind"),
        ("nodes", 1, "influence"),
        ("nodes", 1, "activation"),
        ("nodes", 1, "is_target_logit"),
        ("links", 0, "weight"),
    ]
)


@settings(deadline=None, max_examples=150)
@given(PLACES, SCALARS)
def test_both_agree_on_any_value(path: tuple, value: Any) -> None:
    graph = broken(path, value)
    by_schema = jsonschema.Draft202012Validator(GRAPH_SCHEMA).is_valid(graph)
    try:
        validate_payload(graph)
        by_hand = True
    except ValueError:
        by_hand = False
    assert by_hand == by_schema


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("nodes", 1, "node_id"), SMALL["nodes"][0]["node_id"], "nodes[1].node_id must be unique"),
        (("nodes", 1, "ctx_idx"), 12, "nodes[1].ctx_idx must be a position of the 12 prompt tokens, got 12"),
        (
            ("metadata", "attention"),
            [ENTRY, ENTRY | {"against": 12}],
            "metadata.attention[1].against must be a position of the 12 prompt tokens, got 12",
        ),
        (("links", 0, "source"), "9_9_9", "links[0].source must be the node_id of a node, got '9_9_9'"),
        (("links", 0, "weight"), float("nan"), "links[0].weight must be finite, got nan"),
        (("nodes", 1, "activation"), float("inf"), "nodes[1].activation must be finite, got inf"),
    ],
)
def test_what_a_schema_cannot_say(path: tuple, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match="graph payload") as caught:
        validate_payload(broken(path, value))
    assert str(caught.value).removeprefix("graph payload: ").startswith(message)


@pytest.mark.parametrize("value", [None, [], "graph", 3])
def test_not_even_an_object(value: Any) -> None:
    with pytest.raises(ValueError, match="graph payload: the payload must be an object"):
        validate_payload(value)
