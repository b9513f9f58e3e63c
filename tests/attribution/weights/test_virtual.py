"""Virtual weights are edges without their prompt: times what a prompt brings, they are the edge."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pullback as pb
from pullback.attribution.local import local_model
from pullback.attribution.weights.wiring import Wiring
from pullback.lens import as_lens
from tests import families, models
from tests.attribution.test_identities import tokens_of

TOKENS = tokens_of(5)
WIRINGS = ["gpt2", "RMS-gqa-rotary-gated", "neox-parallel", "gemma2"]


def build(name: str) -> Any:
    return as_lens((families if name in families.FAMILIES else models).build(name))


def dense(wiring: Wiring, source: int, target: int, head: tuple[int, int] | None = None) -> torch.Tensor:
    """V, (F_source, F_target), straight from its definition."""
    written = wiring.writes(source, target if head is None else head[0])
    reads = wiring.reads(target, torch.arange(wiring.sets[target].d_sae))
    return written @ (reads if head is None else wiring.back_through(head, reads)).T


@pytest.mark.parametrize("hook_in", ["mlp.hook_in", "ln2.hook_normalized"])
@pytest.mark.parametrize("cross_layer", [False, True])
@pytest.mark.parametrize("name", WIRINGS)
def test_an_edge_at_one_position_is_the_activation_times_the_virtual_weight(
    name: str, cross_layer: bool, hook_in: str
) -> None:
    """Without heads in between (the bypass), and over the norm's denominator at that position."""
    lens = build(name)
    sets = (models.random_clt if cross_layer else models.random_set)(lens, hook_in=hook_in)
    local = local_model(lens, sets, TOKENS)
    wiring = Wiring(lens, sets)
    edges, expected = [], []
    for source, target in ((0, 1), (0, 2), (1, 2)):
        V = dense(wiring, source, target)
        for pos in (0, 3):
            ids, z = local.acts[source].row(pos)
            j = int(local.acts[target].row(pos)[0][0])
            for i, a in zip(ids.tolist(), z, strict=True):
                edges.append((f"{source}_{i}_{pos}", f"{target}_{j}_{pos}"))
                expected.append(a * V[i, j] / local.trace.layers[target].ln2_scale[pos, 0])
    found = pb.head_loadings(lens, sets, TOKENS, edges)
    assert torch.allclose(found.bypass, torch.stack(expected), atol=1e-10)


@pytest.mark.parametrize("name", WIRINGS)
def test_an_edge_through_one_head_is_its_pattern_times_the_virtual_weight(name: str) -> None:
    lens = build(name)
    sets = models.random_clt(lens)
    local = local_model(lens, sets, TOKENS)
    wiring = Wiring(lens, sets)
    layer, target = (1, 2) if lens.parallel else (1, 1)  # one layer of attention between, so one path a head
    heads = wiring.heads_between(0, target)
    assert heads == [(layer, head) for head in range(4)]
    i, a = (part[0] for part in local.acts[0].row(1))
    j = int(local.acts[target].row(4)[0][0])
    found = pb.head_loadings(lens, sets, TOKENS, [(f"0_{i}_1", f"{target}_{j}_4")])
    at = local.trace.layers[layer]
    scales = at.ln1_scale[1, 0] * local.trace.layers[target].ln2_scale[4, 0]
    for head in range(4):
        V = dense(wiring, 0, target, (layer, head))[int(i), j]
        carried = a * at.mixing[head, 4, 1] * V / scales
        assert float(found.heads[0, layer, head]) == pytest.approx(float(carried), abs=1e-10)
    assert len(wiring.heads_between(0, 2)) == (4 if lens.parallel else 8)
    x = torch.randn(3, lens.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = x.flip(1)
    assert torch.allclose(wiring.through((1, 3), x) @ g.T, x @ wiring.back_through((1, 3), g).T, atol=1e-10)
    assert torch.allclose(
        wiring.as_read(2, x) @ sets[2].W_enc[:5].T, x @ wiring.reads(2, torch.arange(5)).T, atol=1e-10
    )


@pytest.mark.parametrize("direction", ["into", "out of"])
@pytest.mark.parametrize("name", ["gpt2", "neox-parallel"])
def test_the_best_are_the_best_of_all(name: str, direction: str) -> None:
    lens = build(name)
    sets = models.random_clt(lens)
    wiring = Wiring(lens, sets)
    layer, others = (2, [0, 1]) if direction == "into" else (0, [1, 2])
    found = pb.virtual_weights(lens, sets, layer, [3, 17], direction=direction, k=30, heads="all")
    every: list[tuple[float, int, int, tuple[int, int]]] = []
    for other in others:
        source, target = (other, layer) if direction == "into" else (layer, other)
        for head in (None, *wiring.heads_between(source, target)):
            V = dense(wiring, source, target, head)
            row = V[:, 17] if direction == "into" else V[17]
            every += [(v, other, n, head or (-1, -1)) for n, v in enumerate(row.tolist())]
    every.sort(key=lambda entry: -abs(entry[0]))
    table = found.to_pandas()
    rows = table[table.feature == 17]
    assert rows.weight.tolist() == pytest.approx([v for v, *_ in every[:30]], abs=1e-10)
    places = list(zip(rows.other_layer, rows.other, zip(rows.via_layer, rows.via_head, strict=True), strict=True))
    assert places == [tuple(place) for _, *place in every[:30]]
    assert "top 30" in repr(found)


def test_the_residual_stream_alone_and_chosen_layers() -> None:
    lens = build("gpt2")
    sets = models.random_set(lens)
    found = pb.virtual_weights(lens, sets, 2, k=40, layers=[1])
    assert found.weights.shape == (40, 40)
    assert set(found.layers.flatten().tolist()) == {1}
    assert set(found.via.flatten().tolist()) == {-1}
    V = dense(Wiring(lens, sets), 1, 2)
    assert torch.allclose(found.weights.sum(1), V.sum(0), atol=1e-9)
    assert torch.equal(pb.virtual_weights(lens, sets, 2, k=40, layers=iter([1])).weights, found.weights)
    more = pb.virtual_weights(lens, sets, 2, 5, k=100, layers=[1])
    assert more.weights.shape == (1, 40), "there are no more"
    one = pb.virtual_weights(lens, sets, 2, 5, k=2, heads=[(2, 3)])
    assert one.heads == [(2, 3)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layer": 7}, "no features of layer 7"),
        ({"features": [40]}, r"ids in 0..39, got \[40\]"),
        ({"features": []}, r"ids in 0..39, got \[\]"),
        ({"features": torch.arange(40) == 5}, r"ids, whole numbers in 0..39, got torch.bool \(of a mask"),
        ({"features": [5.7]}, "ids, whole numbers in 0..39, got torch.float32"),
        ({"direction": "up"}, "direction must be 'into' or 'out of'"),
        ({"layer": 0}, "no features below layer 0"),
        ({"layer": 2, "direction": "out of"}, "no features above layer 2"),
        ({"layers": [2]}, "a source must lie in a lower layer"),
        ({"heads": [(9, 0)]}, r"no heads \[\(9, 0\)\]; the model has 3 layers of 4"),
        ({"heads": "some"}, "pairs or 'all', got 'some'"),
        ({"k": 0}, "k must be at least 1"),
    ],
)
def test_what_there_is_not(options: dict[str, Any], sentence: str) -> None:
    lens = build("gpt2")
    with pytest.raises(ValueError, match=sentence):
        pb.virtual_weights(lens, models.random_set(lens), **({"layer": 1} | options))
