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
        assert not after.startswith(f"after: '{prompt.answer}' ")
        assert after.count("%") == 3


@pytest.mark.parametrize("wrong", ["1_5_2", "E_3_1=2", "1_5_2=high", "=3"])
def test_what_is_no_feature_is_said(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["intervene", "planted", "the capital of texas is", "--set", wrong]) == 2
    assert "--set takes a feature as graphs name it and a number" in capsys.readouterr().err
