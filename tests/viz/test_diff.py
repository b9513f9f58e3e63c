"""Two graphs on one page: how positions are aligned, what is merged, and what the page shows of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools.browser import binary

from pullback.viz import diff_page, validate_payload
from pullback.viz.diff import align_positions, merge
from tests.viz import browser, payloads

A = payloads.capital(seed=0)
TOKENS = A["metadata"]["prompt_tokens"]


def shifted() -> dict[str, Any]:
    """A with another city and a word more before it, a feature gone, a feature new, and one weight changed."""
    graph = copy.deepcopy(A)
    graph["metadata"]["prompt_tokens"] = [*TOKENS[:7], " big", " oakland", " is"]
    graph["metadata"]["prompt"] = "".join(graph["metadata"]["prompt_tokens"])
    gone = graph["qParams"]["supernodes"][0][1]
    moved = {}
    for node in graph["nodes"]:
        old, pos = node["node_id"], node["ctx_idx"]
        node["ctx_idx"] = pos + (pos >= 7)
        node["node_id"] = moved[old] = f"{old.removesuffix(f'_{pos}')}_{node['ctx_idx']}"
        node["activation"] = (node["activation"] or 0) + 1
    for link in graph["links"]:
        link["source"], link["target"] = moved[link["source"]], moved[link["target"]]
    graph["nodes"] = [n for n in graph["nodes"] if moved[gone] not in (n["node_id"], n["node_id"].removeprefix("own_"))]
    left = {n["node_id"] for n in graph["nodes"]}
    graph["links"] = [e for e in graph["links"] if {e["source"], e["target"]} <= left]
    graph["nodes"].append(payloads.node("1_2000_8", "feature", "1", 8, influence=0.01, clerp="new"))
    graph["links"][0]["weight"] += 5
    graph["qParams"]["supernodes"], graph["qParams"]["pinnedIds"] = [], ["1_2000_8"]
    return graph


B = shifted()
GONE = A["qParams"]["supernodes"][0][1]


def test_alignment_pairs_what_was_exchanged() -> None:
    assert align_positions(["the", "city", "dallas", "is"], ["the", "big", "oakland", "is"]) == (
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        ["the", "city / big", "dallas / oakland", "is"],
    )
    assert align_positions(["in", "a", "dallas"], ["in", "los", "angeles", "a"], "positions") == (
        [0, 1, 2],
        [0, 1, 2, 3],
        ["in", "a / los", "dallas / angeles", "a"],
    )
    # The longer name begins earlier: last goes with last.
    assert align_positions(["in", "dallas", "is"], ["in", "los", "angeles", "is"]) == (
        [0, 2, 3],
        [0, 1, 2, 3],
        ["in", "los", "dallas / angeles", "is"],
    )
    with pytest.raises(ValueError, match="align must be 'tokens' or 'positions', got 'words'"):
        align_positions([], [], "words")  # type: ignore[arg-type]


WORDS = st.lists(st.sampled_from("abc"), max_size=8)


@given(WORDS, WORDS, st.sampled_from(["tokens", "positions"]))
def test_alignment_keeps_order_and_fills_every_column(a: list[str], b: list[str], align: Any) -> None:
    in_a, in_b, names = align_positions(a, b, align)
    for columns, tokens in ((in_a, a), (in_b, b)):
        assert columns == sorted(set(columns))
        assert len(columns) == len(tokens)
        assert all(tokens[k] in names[c].split(" / ") for k, c in enumerate(columns))
    assert {*in_a, *in_b} == set(range(len(names)))
    if a == b:
        assert in_a == in_b


def test_merge_matches_nodes_and_keeps_both_weights() -> None:
    before = copy.deepcopy((A, B))
    merged = merge(A, B)
    assert before == (A, B)
    validate_payload(merged)
    nodes = {node["node_id"]: node for node in merged["nodes"]}
    sides = {node_id: node["side"] for node_id, node in nodes.items() if node["side"]}
    gone = f"{GONE.rsplit('_', 1)[0]}_{int(GONE.rsplit('_', 1)[1]) + 1}"
    assert sides == {gone: "a", f"own_{gone}": "a", "1_2000_8": "b"}
    assert merged["compared"]["counts"] == {"a": 2, "b": 1, "both": len(A["nodes"]) - 2}
    both = next(node for node in merged["nodes"] if node["side"] is None and node["kind"] == "feature")
    assert both["other"]["activation"] == both["activation"] + 1
    dallas = nodes["E_107_8"]
    assert (dallas["token"], dallas["other"]["token"]) == (" dallas", " oakland")
    weights = {(e["source"], e["target"]): (e["weight"], e["other"]) for e in merged["links"]}
    first = B["links"][0]
    assert weights[first["source"], first["target"]] == (pytest.approx(first["weight"] - 5), first["weight"])
    assert all(
        w == v
        for key, (w, v) in weights.items()
        if gone not in key and key != (first["source"], first["target"]) and f"own_{gone}" not in key
    )
    assert all(v == 0 for key, (_, v) in weights.items() if gone in key)
    assert merged["qParams"]["pinnedIds"] == ["1_2000_8"]


def test_directions_are_the_same_where_they_say_so() -> None:
    def asked(*labels: str, weight: float) -> dict[str, Any]:
        graph = copy.deepcopy(A)
        for n, label in enumerate(labels):
            said = f'Output "{label}" (p={weight:.3f})'
            graph["nodes"].append(payloads.node(f"D_{n}_8", "logit", "3", 8, influence=0.5, clerp=said))
            graph["nodes"].append(payloads.node(f"own_D_{n}_8", "own", "3", 8, influence=0.1))
        return graph

    merged = merge(asked("x - y", "z", weight=1), asked("y - x", "x - y", "z", "z", weight=0.5))
    sides = {node["node_id"]: node["side"] for node in merged["nodes"] if "D_" in node["node_id"]}
    expected = {"D_0_8": None, "D_1_8": None, "D_2_8": "b", "D_3_8": "b"}
    assert sides == expected | {f"own_{name}": side for name, side in expected.items()}


def test_graphs_of_two_models_are_refused() -> None:
    other = A | {"metadata": A["metadata"] | {"scan": "gpt2"}}
    with pytest.raises(
        ValueError, match="graphs of different models have no features in common, got 'tiny-mix' and 'gpt2'"
    ):
        diff_page(A, other)


@pytest.mark.skipif(binary() is None, reason="no browser")
def test_page_switches_between_the_two_and_their_difference(tmp_path: Path) -> None:
    script = """
    setTo("#threshold", "1"); $("#show-biases").click(); await soon();
    const view = (name) => { $(`#compare input[value=${name}]`).click(); return shownIds(); };
    const both = shownIds(), a = view("a"), onlyA = $("#counts").textContent, b = view("b"); view("difference");
    const only = (side) => $$(`#nodes .only-${side}`).map((e) => e.dataset.id);
    const texts = (list) => [...list].map((e) => e.innerText);
    const largest = texts($('section[aria-label="Largest differences"] tbody tr').children);
    const lists = ["only in A", "only in B"].map((name) => texts($$(`section[aria-label="${name}"] .name`)));
    point("click", only("b")[0]);
    const kind = $("#selected-node .kind").innerText;
    return { both, a, b, onlyA: only("a"), onlyB: only("b"), largest, lists, kind,
             tokens: texts($$("#tokens bdi")), legend: $("#legend").innerText };
    """
    got = browser.drive(diff_page(A, B), script, tmp_path)
    gone = f"{GONE.rsplit('_', 1)[0]}_{int(GONE.rsplit('_', 1)[1]) + 1}"
    assert set(got["both"]) - set(got["b"]) == {gone, f"own_{gone}"} == set(got["onlyA"])
    assert set(got["both"]) - set(got["a"]) == {"1_2000_8"} == set(got["onlyB"])
    assert got["largest"][3] == "+5.00"
    assert got["lists"][1] == ["new"]
    assert got["kind"].strip() == "Feature, only in B"
    assert "dallas / oakland" in got["tokens"]
    assert "only in A" in got["legend"]
