"""`pullback intervene`, on the planted model, whose state and relation features are known."""

from __future__ import annotations

import pytest

import pullback as pb
from pullback.cli import main


def test_without_its_state_the_model_does_not_know_the_capital(capsys: pytest.CaptureFixture[str]) -> None:
    truth = pb.zoo.truth("planted")
    prompt = truth.prompts[0]
    layer, pos, feature = truth.features(prompt)[0]
    node = f"{layer}_{feature}_{pos}"
    assert main(["intervene", "planted", prompt.text, "--scale", f"{node}=1", "--generate", "1"]) == 0
    same = capsys.readouterr().out.splitlines()
    assert same[0].startswith(f"before: '{prompt.answer}' ")
    assert same[1] == same[0].replace("before", "after")
    assert same[3] == same[2].replace("before", "after")
    assert prompt.answer in same[2]
    for option in ("--scale", "--set"):
        assert main(["intervene", "planted", prompt.text, option, f"{node}=0", "--freeze", "none", "--top", "3"]) == 0
        before, after = capsys.readouterr().out.splitlines()
        assert before.startswith(f"before: '{prompt.answer}' ")
        # Which of them comes first is rounding: all capitals are as likely as one another.
        shown = [float(part.split()[-1]) for part in after.split("%")[:-1]]
        assert len(shown) == 3
        assert max(shown) == min(shown) < 5


def test_features_of_attention_are_named_as_graphs_name_them(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "the capital of the state containing dallas is"
    model, sets, saes = pb.zoo.load("tiny-mix"), pb.zoo.transcoders("tiny-mix"), pb.zoo.saes("tiny-mix")
    graph = pb.attribute(model, sets, prompt, attention_saes=saes)
    best = graph.influence().argsort(descending=True).tolist()
    node = next(name for name in (graph.node_ids()[i] for i in best) if name.startswith("A") and "_-1_" not in name)
    given = ["intervene", "tiny-mix", prompt, "--set", f"{node}=-60", "--top", "1"]
    assert main([*given, "--attention-saes", "zoo", "--generate", "1"]) == 0
    before, after, *texts = capsys.readouterr().out.splitlines()
    (feature,) = pb.Supernode.from_node_ids(node, [node]).features
    logits = pb.intervene(model, sets, prompt, [(feature, -60.0)], attention_saes=saes)[-1]
    assert after.endswith(f"{float(logits.softmax(-1).max()):.1%}")
    assert after.removeprefix("after") != before.removeprefix("before")
    assert len(texts) == 2
    assert main(given) == 2
    assert "give attention_saes" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["1_5_2", "E_3_1=2", "1_5_2=high", "=3"])
def test_what_is_no_feature_is_said(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["intervene", "planted", "the capital of texas is", "--set", wrong]) == 2
    assert "--set takes a feature as graphs name it and a number" in capsys.readouterr().err
