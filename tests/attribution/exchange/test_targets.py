"""Graphs that explain more than the next token: what their files keep of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pullback as pb
from pullback.attribution import Graph
from pullback.lens import as_lens
from tests import models
from tests.attribution.test_identities import _dense, tokens_of


@pytest.fixture(scope="module")
def graph() -> Graph:
    """A direction between logits, a logit elsewhere, features that are active and that are not."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    features = [pb.FeatureTarget(1, 3, f) for f in range(8)]
    asked = [pb.LogitDifference((3, 4)), pb.LogitTarget(5, position=2), 7, *features]
    return pb.attribute(lens, models.random_set(lens), tokens_of(6), attribution_targets=asked)


def same(back: Graph, graph: Graph) -> None:
    assert back.node_ids() == graph.node_ids()
    assert torch.equal(_dense(back), _dense(graph))
    assert torch.equal(back.target_weights, graph.target_weights)
    assert torch.equal(back.nodes.layer, graph.nodes.layer)
    assert (back.check(), back.scores()) == (graph.check(), graph.scores())
    assert back.meta["direction_labels"] == graph.meta["direction_labels"]


def test_json_and_tables_keep_what_is_explained(graph: Graph) -> None:
    payload = graph.to_neuronpedia()
    same(Graph.from_neuronpedia(payload), graph)
    assert Graph.from_neuronpedia(payload).to_neuronpedia() == payload
    same(Graph.from_arrow(*graph.to_arrow()), graph)


def test_circuit_tracer_has_no_place_for_it(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="explains logits at the last position"):
        graph.to_circuit_tracer(tmp_path / "g.pt")
