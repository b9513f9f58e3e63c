"""Scores and head loadings on `HookedTransformer`, where the installed TransformerLens still has it."""

from __future__ import annotations

import pytest

import pullback as pb
from tests import models
from tests.hooked import TOKENS, WIRINGS, lens_of, must_have_hooked_transformer

must_have_hooked_transformer()


@pytest.mark.parametrize("name", WIRINGS)
def test_pairs_sum_to_the_score_and_heads_to_the_edge(name: str) -> None:
    lens = lens_of(name)
    sets = models.random_set(lens)
    found = pb.qk_attribution(lens, sets, TOKENS, 1, 2, 5, 3)
    site = "blocks.1.attn.hook_attn_scores"
    assert found.check() <= 1e-12
    assert found.capped == pytest.approx(float(lens.record(TOKENS[None], [site])[1][site][0, 2, 5, 3]), abs=1e-9)
    graph = pb.attribute(lens, sets, TOKENS, max_n_logits=1).prune()
    loadings = pb.head_loadings(lens, sets, graph)
    for (source, target), weight in zip(loadings.edges, loadings.weights.tolist(), strict=True):
        assert weight == pytest.approx(graph.edge(source, target), abs=1e-9)
