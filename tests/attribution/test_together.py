"""Prompts of one length in one forward pass and one sweep: each graph as it is alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pullback as pb
from pullback.attribution import nodes as k
from pullback.attribution.local import fitted_transcoders, local_models
from pullback.attribution.many.together import attribute_together
from pullback.attribution.settings import Settings
from pullback.lens import as_lens
from pullback.transcoders import BatchTopK
from tests import models
from tests.attribution.test_identities import assert_same_edges


def together(lens: Any, sets: Any, prompts: torch.Tensor, **settings: Any) -> list[pb.Graph]:
    chosen = Settings(**settings)
    locals = local_models(lens, fitted_transcoders(lens, sets), prompts)
    graphs = list(attribute_together(lens, locals, chosen, [{}] * len(prompts)))
    assert all(isinstance(graph, pb.Graph) for graph in graphs), graphs
    return graphs  # type: ignore[return-value]


def prompts_of(n: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, models.VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))


WIRINGS = ["LN-gqa-standard-plain", "RMS-mha-rotary-gated", "LNPre-mha-standard-plain", "neox-parallel"]


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.parametrize("skip", [False, True])
def test_a_batch_of_prompts_is_each_of_them_alone(name: str, skip: bool) -> None:
    """In float64: what a batch mate does is not hidden in a tolerance."""
    lens = as_lens(models.build(name))
    sets = models.random_set(lens, skip=skip, activation="relu", d_sae=12)
    prompts = prompts_of(3, 5)
    for prompt, graph in zip(prompts, together(lens, sets, prompts), strict=True):
        alone = pb.attribute(lens, sets, prompt)
        assert graph.check() <= 1e-9
        assert graph.meta["tokens"] == prompt.tolist()
        assert_same_edges(graph, alone, 1e-12)


@given(
    n=st.integers(1, 5),
    length=st.integers(1, models.N_CTX),
    activation=st.sampled_from(["topk", "relu", "jumprelu"]),
    clt=st.booleans(),
    limit=st.sampled_from([None, 0, 3, 20]),
    batch_size=st.integers(1, 60),
    edge_mass=st.sampled_from([1.0, 0.7]),
    feature=st.sampled_from([None, 0, 3]),
    seed=st.integers(0, 100),
)
def test_whatever_is_asked(
    n: int,
    length: int,
    activation: str,
    clt: bool,
    limit: int | None,
    batch_size: int,
    edge_mass: float,
    feature: int | None,
    seed: int,
) -> None:
    """Prompts whose features differ in number and layer: columns with gaps, rounds that end at different times. An
    explained feature may be active in some of them only."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = (models.random_clt if clt else models.random_set)(lens, seed, activation=activation, d_sae=8, k=3)
    settings = {
        "max_feature_nodes": limit,
        "batch_size": batch_size,
        "update_interval": 1,
        "max_n_logits": 3,
        "edge_mass": edge_mass,
        "attribution_targets": None if feature is None else pb.FeatureTarget(2, length - 1, feature),
    }
    prompts = prompts_of(n, length, seed)
    for prompt, graph in zip(prompts, together(lens, sets, prompts, **settings), strict=True):
        assert_same_edges(graph, pb.attribute(lens, sets, prompt, **settings), 1e-10)


def test_float32_agrees_to_a_millionth() -> None:
    model, sets = pb.zoo.load("tiny-mix"), pb.zoo.transcoders("tiny-mix")
    lens = as_lens(model)
    prompts = torch.randint(5, lens.d_vocab, (6, 16), generator=torch.Generator().manual_seed(0))
    for prompt, graph in zip(prompts, together(lens, sets, prompts), strict=True):
        assert_same_edges(graph, pb.attribute(lens, sets, prompt), 1e-6)


def test_a_target_that_one_prompt_lacks_is_its_own_failure() -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens, activation="jumprelu")
    locals = local_models(lens, fitted_transcoders(lens, sets), prompts_of(2, 4))
    settings = Settings(attribution_targets=[pb.FeatureTarget(2, 3, 99)])
    found = list(attribute_together(lens, locals, settings, [{}, {}]))
    assert len(found) == 2
    assert all(isinstance(one, str) and "features 0..39" in one for one in found)


def test_prompts_do_not_compete_for_activity() -> None:
    """BatchTopK without a threshold chooses among the rows of one prompt."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    sets = models.random_set(lens)
    for layer in sets.layers:
        sets[layer].activation = BatchTopK(4)
    prompts = prompts_of(3, 5)
    for prompt, graph in zip(prompts, together(lens, sets, prompts), strict=True):
        assert int(graph.of_kind(k.FEATURE).sum()) == 3 * 5 * 4
        assert_same_edges(graph, pb.attribute(lens, sets, prompt), 1e-12)


def test_the_autograd_engine_takes_them_one_by_one() -> None:
    lens = as_lens(models.build("RMS-mha-rotary-gated"))
    sets = models.random_set(lens, k=2)
    prompts = prompts_of(2, 3)
    linear = together(lens, sets, prompts, max_n_logits=1)
    for ours, oracle in zip(linear, together(lens, sets, prompts, max_n_logits=1, engine="autograd"), strict=True):
        assert_same_edges(ours, oracle, 1e-9)
