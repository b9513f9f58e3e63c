"""Induction and brackets in models written by hand: the planted path is found, and carries the answer."""

from __future__ import annotations

import pytest

import pullback as pb
from pullback.attribution import nodes as k
from pullback.attribution.hierarchical import Gate, circuit_of
from pullback.causal import Margin, circuit_faithfulness
from tests.attribution.hierarchical.analogues import Analogue, brackets, induction

INDUCTION = {"a b c d a": "b", "e k a c f k": "a", "c d e f g h d": "e", "h h": "h"}
BRACKETS = {"( x [ y": "]", "( x [ y ] z": ")", "[ x": "]", "[ ( x ) y ( z": ")", "( x ) y [ z": "]", "[ x y z": "]"}
CASES = [(induction, text, answer) for text, answer in INDUCTION.items()]
CASES += [(brackets, text, answer) for text, answer in BRACKETS.items()]


def planted(model: Analogue, text: str, answer: str) -> list[str]:
    """The path: the answer's logit, the feature that says it, the one that it reads at its source, the word there."""
    words = text.split()
    if model is induction():
        source, names = words.index(words[-1]) + 1, (f"say {answer}", f"word {answer}")
    else:
        opened: list[int] = []
        for n, word in enumerate(words):
            if word in "([":
                opened.append(n)
            elif word in ")]":
                opened.pop()
        source, names = opened[-1], (f"close {answer}", f"opener {words[opened[-1]]}")
    at, last = source + 1, len(words)  # behind <bos>
    token = model.words.index(answer)
    return [
        f"3_{token}_{last}",
        model.node(1, names[0], last),
        model.node(0, names[1], at),
        f"E_{model.words.index(words[source])}_{at}",
    ]


@pytest.mark.parametrize(("make", "text", "answer"), CASES)
def test_the_planted_path_is_found_and_carries_the_answer(make, text: str, answer: str) -> None:
    model = make()
    tokens = model.tokens(f"<bos> {text}")
    assert model.words[int(model.lens.logits(tokens[None])[0, -1].argmax())] == answer
    target = model.words.index(answer)
    found = pb.hierarchical(model.lens, model.sets, tokens, target, tau=0.05, relative=True)
    path = planted(model, text, answer)
    logit, says, reads, word = path

    graph = found.whole
    active = graph.of_kind(k.FEATURE)
    assert int(active.sum()) > 20, "distractors are active all over"
    feature = found.graph.of_kind(k.FEATURE).tolist()
    circuit = {name for name, is_feature in zip(found.graph.node_ids(), feature, strict=True) if is_feature}
    assert circuit == {says, reads}
    assert set(path) <= set(found.graph.node_ids())

    places = graph.places(path)
    values = graph.nodes.preactivation[places].nan_to_num(1.0)
    shares = found.attribution[places] / values[0]
    assert float(shares.min()) > 0.95
    share = 1.0
    for target_name, source_name, value in zip(path, path[1:], values.tolist(), strict=False):
        share *= graph.edge(source_name, target_name) / value
    assert 0.95 < share < 1.05, "along the path alone"
    assert found.recovery > 0.95
    local = circuit_of(graph, says, gate=Gate(0.05, relative=True))
    assert set(local.graph.node_ids()) >= {says, reads, word}
    assert int(local.graph.of_kind(k.FEATURE).sum()) == 2
    assert logit not in local.graph.node_ids()


@pytest.mark.parametrize(("make", "text", "answer"), [CASES[0], CASES[4]])
def test_alone_it_does_what_the_model_does_while_patterns_are_held(make, text: str, answer: str) -> None:
    model = make()
    tokens, token = model.tokens(f"<bos> {text}"), model.words.index(answer)
    found = pb.hierarchical(model.lens, model.sets, tokens, token, tau=0.05, relative=True)
    held, live = (
        circuit_faithfulness(model.lens, model.sets, found.whole, found.kept, measure=Margin(token), freeze=freeze)
        for freeze in ("attention", None)
    )
    assert held == pytest.approx(1, abs=0.05)
    if make is induction:  # the features that say where to look are no part of it
        assert live < 0.5
