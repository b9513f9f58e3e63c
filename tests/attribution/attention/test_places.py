"""Loadings by place: their sums are the head loadings, and each is what its one entry of a pattern carries."""

from __future__ import annotations

import pytest
import torch

import pullback as pb
from pullback.attribution import nodes as k
from pullback.attribution.attention.places import Carried, Place
from pullback.attribution.local import local_model
from pullback.lens import as_lens
from tests import families, models
from tests.attribution.test_identities import tokens_of

TOKENS = tokens_of(5)
NAMES = ["gpt2", "RMS-gqa-rotary-gated", "neox-parallel", "gemma2"]


def build(name: str):
    lens = as_lens((families if name in families.FAMILIES else models).build(name))
    return lens, models.random_set(lens, skip=True)


def all_edges(graph: pb.Graph) -> tuple[list[tuple[str, str]], torch.Tensor]:
    """Edges that have a path, and a weight of its own for each."""
    ids, own = graph.node_ids(), graph.of_kind(k.OWN)[graph.sources.long()]
    ends = zip(graph.sources[~own].tolist(), graph.rows()[~own].tolist(), strict=True)
    edges = [(ids[s], ids[t]) for s, t in ends]
    return edges, torch.linspace(-1, 2, len(edges), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_over_keys_they_sum_to_the_head_loadings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lens, sets = build(name)
    graph = pb.attribute(lens, sets, TOKENS, max_n_logits=2)
    edges, weights = all_edges(graph)
    found = pb.head_loadings(lens, sets, TOKENS, edges)
    carried = Carried(local_model(lens, sets, TOKENS), edges, weights, {})
    sums, queries = carried.sums()
    position = torch.tensor([int(target.split("_")[2]) for _, target in edges])
    for q, at in enumerate(queries.tolist()):
        here = position == at
        expected = torch.einsum("elh,e->lh", found.heads[here], weights[here])
        assert torch.allclose(sums[:, :, q].sum(-1), expected, atol=1e-10)
    assert float(sums.abs().max()) > 1e-2
    monkeypatch.setattr("pullback.attribution.attention.loadings.WORKING_MEMORY", 1)  # one source at a time
    assert torch.allclose(carried.sums()[0], sums, atol=1e-12)


@pytest.mark.parametrize("name", NAMES[:3])
def test_an_entry_of_a_pattern_carries_what_is_lost_without_it(name: str) -> None:
    lens, sets = build(name)
    edges, weights = all_edges(pb.attribute(lens, sets, TOKENS, max_n_logits=2))
    local = local_model(lens, sets, TOKENS)
    carried = Carried(local, edges, weights, {})
    sums, queries = carried.sums()
    chosen = [Place(0, 1, 4, 2), Place(1, 2, 4, 0), Place(2, 3, 4, 4), Place(1, 0, 3, 1)]
    through = carried.through(chosen)
    for place, row in zip(chosen, through, strict=True):
        layer, head, query, key = place
        total = float(sums[layer, head, queries.tolist().index(query), key])
        assert float(row.sum()) == pytest.approx(total, abs=1e-10)
        assert float(row.abs().max()) > 0
        mixing = local.trace.layers[layer].mixing
        before, mixing[head, query, key] = float(mixing[head, query, key]), 0.0
        without = Carried(local, edges, weights, {}).sums()[0][layer, head].sum(-1)
        mixing[head, query, key] = before
        lost = sums[layer, head].sum(-1) - without
        expected = torch.zeros_like(lost)
        expected[queries.tolist().index(query)] = total
        assert torch.allclose(lost, expected, atol=1e-10)


def test_directions_are_read_as_told() -> None:
    """A difference of logits carries the difference of what they do."""
    lens, sets = build("gpt2")
    graph = pb.attribute(lens, sets, TOKENS, attribution_targets=[3, 7])
    a, b = graph.node_ids()[-2:]
    sources = [name for name in graph.node_ids() if name[0] in "012E" and "own" not in name][::7]
    local = local_model(lens, sets, TOKENS)
    t = local.trace
    read = t.ln_final.pullback((t.W_U[:, 3] - t.W_U[:, 7])[None], t.final_scale[-1:])[0]

    def sums(target: str, known: dict) -> torch.Tensor:
        return Carried(local, [(s, target) for s in sources], torch.ones(len(sources)).double(), known).sums()[0]

    both = sums(a, {}) - sums(b, {})
    assert torch.allclose(sums("D_0_4", {"D_0_4": (3, 4, read)}), both, atol=1e-10)
