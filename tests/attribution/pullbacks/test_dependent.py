"""Attributions of one prompt along one way: exact, and together everything that there is."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

import pullback as pb
from pullback.attribution.local import local_model
from pullback.lens.depth import at_mlp
from tests import models
from tests.attribution.pullbacks.test_pullback import WIRINGS, autoencoders, build
from tests.attribution.test_identities import tokens_of

TOKENS = tokens_of(5)
CLOSE = {"abs": 1e-9, "rel": 1e-9}


def chains(lens: Any, source: int, target: int) -> list[list[tuple[int, int]]]:
    """Every chain of heads between the MLPs of two layers, the empty one among them."""
    layers = range(source + 1, target + (0 if lens.parallel else 1))
    chosen = product(*([None, *((layer, head) for head in range(lens.n_heads))] for layer in layers))
    return [[head for head in chain if head is not None] for chain in chosen]


@pytest.mark.parametrize("cross_layer", [False, True])
@pytest.mark.parametrize("name", WIRINGS)
def test_over_all_chains_of_heads_they_sum_to_the_edges_of_autograd(name: str, cross_layer: bool) -> None:
    """Input times gradient, all sources that a graph has: features, tokens and position vectors."""
    lens = build(name)
    sets = (models.random_clt if cross_layer else models.random_set)(lens)
    local = local_model(lens, sets, TOKENS)
    ways: list[tuple[Any, int, int, str]] = [(0, 0, 2, "0_{id}_{pos}")]
    if not cross_layer:
        ways.append(("embedding", -1, 1, "E_{id}_{pos}"))
    if name == "gpt2":
        ways.append(("position", -1, 1, "P_{pos}"))
    for source, lowest, layer, node in ways:
        target = pb.FeatureTarget(layer, 4, 11)
        graph = pb.attribute(lens, sets, TOKENS, attribution_targets=target, engine="autograd", verbose=False)
        _, edges = graph.to_pandas()
        into = edges[edges.target == f"{layer}_11_4"]
        own = {
            key: weight
            for key, weight in zip(into.source, into.weight, strict=True)
            if key[0] == node[0] and key.split("_")[1].isdecimal()
        }
        found: dict[str, float] = {}
        for chain in chains(lens, lowest, layer):
            one = pb.input_attribution(lens, sets, local, target, source, heads=chain)
            for i, pos, value in zip(one.ids.tolist(), one.pos.tolist(), one.values[0].tolist(), strict=True):
                key = node.format(id=i, pos=pos)
                found[key] = found.get(key, 0.0) + value
        assert own
        assert {key: found[key] for key in own} == pytest.approx(own, **CLOSE)


@pytest.mark.parametrize("hook_in", ["mlp.hook_in", "ln2.hook_normalized"])
@pytest.mark.parametrize("name", WIRINGS)
def test_the_identity(name: str, hook_in: str) -> None:
    """What one feature reads directly from everything that writes, leaf by leaf, is its pre-activation."""
    lens = build(name)
    sets = models.random_set(lens, hook_in=hook_in, skip=True)
    local = local_model(lens, sets, TOKENS)
    layer, pos, ids = 2, 3, [0, 7, 21]
    at = local.trace.layers[layer]

    def reads(source: Any, **options: Any) -> torch.Tensor:
        return pb.input_attribution(lens, sets, local, (layer, ids), source, position=pos, **options).total

    rows = sets[layer].W_enc[ids]
    g = at.read_pullback(hook_in, rows, torch.full((3,), pos))
    total = sets[layer].b_enc[ids] + rows @ at.read_bias(hook_in) + reads("embedding")
    if local.trace.pos_embed is not None:
        total = total + reads("position")
    for k in range(layer):
        skip = local.trace.layers[k].mlp_out - local.errors[k] - local.mlp_bias[k] - sets.decode(local.acts, k)
        total = total + reads(k) + g @ (local.errors[k] + local.mlp_bias[k] + skip)[pos]
    for k in range(layer + (0 if lens.parallel else 1)):
        total = total + sum(reads("residual", heads=(k, h)) for h in range(lens.n_heads)) + g @ local.attn_bias[k][pos]
    x = at.read(hook_in)[pos]
    assert total.tolist() == pytest.approx((rows @ x + sets[layer].b_enc[ids]).tolist(), **CLOSE)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_what_heads_bring_is_what_attention_wrote(name: str) -> None:
    """Over source positions and heads, and with the constants of attention, <attn_out, v>."""
    lens = build(name)
    sets = models.random_set(lens)
    at = local_model(lens, sets, TOKENS).trace.layers[1]
    v = torch.randn(lens.d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction = pb.DirectionTarget(v, "blocks.1.hook_resid_post", position=4)
    brought = sum(
        pb.input_attribution(lens, sets, TOKENS, direction, "residual", heads=(1, head)).total for head in range(4)
    )
    assert float(brought) == pytest.approx(float((at.attn_out[4] - at.attn_constant[4]) @ v), **CLOSE)


@pytest.mark.parametrize("name", ["gpt2", "RMS-gqa-rotary-gated"])
def test_ratios_carry_the_whole_of_the_norm(name: str) -> None:
    """<v, LN(x)> of the stream, for the target and behind a head; and the factors are the pullbacks without norms."""
    lens = build(name)
    sets = models.random_set(lens)
    trace = local_model(lens, sets, TOKENS).trace
    at = trace.layers[2]
    rows = sets[2].W_enc[[2, 9]]
    target = (2, [2, 9])
    whole = pb.input_attribution(lens, sets, TOKENS, target, "residual", position=3, ln="ratio")
    assert whole.total.tolist() == pytest.approx((rows @ at.read("mlp.hook_in")[3]).tolist(), **CLOSE)
    head = pb.input_attribution(lens, sets, TOKENS, target, "residual", position=3, heads=(1, 2), ln="ratio")
    low, c = trace.layers[1], (rows @ at.read("mlp.hook_in")[3]) / (rows @ trace.stream(at_mlp(2))[3])
    w = low.weights
    carried = w.ln1(low.x_pre, low.ln1_scale) @ w.W_V[2 // (4 // len(w.W_V))] @ w.W_O[2]
    for n in range(2):
        expected = low.pattern[2, 3] * (carried @ rows[n]) * c[n]
        assert head.values[n].tolist() == pytest.approx(expected.tolist(), **CLOSE)
    features = pb.input_attribution(lens, sets, TOKENS, target, 0, position=3, heads=(1, 2), ln="ratio")
    plain = pb.pullback(lens, sets, target, 0, heads=(1, 2), ln="ratio").values
    assert torch.allclose(features.pullbacks, plain[:, features.ids], atol=1e-12)
    assert set(features.pos.tolist()) == {0, 1, 2, 3}


def test_a_direction_that_the_stream_does_not_have_gets_nothing() -> None:
    lens = build("gpt2")
    sets = models.random_set(lens)
    read = pb.DirectionTarget(torch.zeros(lens.d_model), "blocks.1.mlp.hook_in")
    found = pb.input_attribution(lens, sets, TOKENS, read, 0, ln="ratio")
    assert found.total.tolist() == [0.0]


def test_features_of_autoencoders_on_a_prompt() -> None:
    lens = build("gpt2")
    sets, saes = models.random_set(lens), autoencoders(lens, "hook_attn_out")
    found = pb.input_attribution(lens, sets, TOKENS, (2, 4), (saes, 1), position=2)
    trace = local_model(lens, sets, TOKENS).trace
    z = saes[1].encode(trace.layers[1].attn_out).to_dense()[2]
    v = pb.pullback(lens, sets, (2, 4), (saes, 1)).values[0]
    expected = z * v / trace.layers[2].ln2_scale[2]
    dense = torch.zeros(40, dtype=torch.float64)
    dense[found.ids] = found.values[0]
    assert torch.allclose(dense, expected, atol=1e-12)


def test_tables_and_positions() -> None:
    lens = build("gpt2")
    sets = models.random_set(lens)
    targets = [pb.FeatureTarget(2, 1, 3), pb.FeatureTarget(2, -1, 3)]
    found = pb.input_attribution(lens, sets, TOKENS, targets, 0)
    assert found.positions == [1, 4]
    table = found.to_pandas(3)
    assert list(table.columns[:5]) == ["target", "target_pos", "source", "pos", "attribution"]
    assert table.target_pos.tolist() == [1, 1, 1, 4, 4, 4]
    assert set(table.pos[table.target_pos == 4]) == {4}
    product_ = table.pullback * table.activation * table.coefficient
    assert table.attribution.tolist() == pytest.approx(product_.tolist())
    assert repr(found) == f"InputAttribution(2 targets, {len(found.pos)} of: features of layer 0)"
    with pytest.raises(ValueError, match="can be sources, not targets"):
        pb.input_attribution(lens, sets, TOKENS, pb.FeatureTarget(2, 3, 1, attention=True), 0)
    with pytest.raises(ValueError, match="which has 5 tokens"):
        pb.input_attribution(lens, sets, TOKENS, (2, 3), 0, position=5)
    rotary = build("llama")
    with pytest.raises(ValueError, match="adds no position vectors"):
        pb.input_attribution(rotary, models.random_set(rotary), TOKENS, (2, 3), "position")
