"""The shipped autoencoders of attention outputs: they fit the model and reconstruct it."""

from __future__ import annotations

import pytest

import pullback as pb
from pullback.training import evaluate
from pullback.zoo.tinymix import saes, tasks


def test_they_belong_to_the_shipped_model_and_reconstruct_it() -> None:
    model, sets = pb.zoo.load("tiny-mix"), pb.zoo.saes("tiny-mix")
    assert sets.layers == [0, 1, 2, 3]
    assert all(sets.hook_in(layer) == sets.hook_out(layer) == saes.HOOK for layer in sets)
    report = evaluate(model, sets, list(tasks.training_batches(seed=1234, n_batches=2)))
    assert max(report.fvu.values()) <= saes.LARGEST_FVU


def test_other_models_have_none() -> None:
    with pytest.raises(ValueError, match="has no autoencoders"):
        pb.zoo.saes("exact")
