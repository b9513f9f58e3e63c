"""Constrained layers, slices of positions and supernodes: the same interventions, said or run in another way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.causal import run_interventions
from pullback.lens import as_lens
from tests import models
from tests.causal.exact import prompts

TOKENS = prompts(1, 6, seed=1)[0]
PLACE = (0, 2)


def first_active(lens: Any, sets: Any, layer: int, pos: int) -> tuple[int, float]:
    x, _ = lens.mlp_io(TOKENS[None], [layer])[layer]
    ids, values = sets.encode(layer, x[0]).row(pos)
    return int(ids[0]), float(values[0])


@pytest.mark.parametrize("draw", [models.random_set, models.random_clt])
@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "RMS-gqa-rotary-gated", "neox-parallel"])
def test_all_layers_constrained_is_all_frozen(name: str, draw: Any) -> None:
    lens = as_lens(models.build(name))
    sets = draw(lens, skip=True)
    f, z = first_active(lens, sets, *PLACE)
    wanted = [(*PLACE, f, z + 3.0)]
    frozen = run_interventions(lens, sets, TOKENS, wanted, freeze="all")
    for freeze in ("attention", None):
        ours = run_interventions(lens, sets, TOKENS, wanted, freeze=freeze, constrained_layers=range(3))
        assert torch.equal(ours.logits, frozen.logits)
        assert all(torch.equal(ours.inputs[i], frozen.inputs[i]) for i in range(3))


@pytest.mark.parametrize("freeze", ["attention", None])
@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "neox-parallel"])
def test_constrained_layers_are_held_and_later_ones_run(name: str, freeze: str | None) -> None:
    """Against a pass with the same tensors put in their places by hand."""
    lens = as_lens(models.build(name))
    clt = models.random_clt(lens)
    f, z = first_active(lens, clt, *PLACE)
    ours = pb.intervene(lens, clt, TOKENS, [(*PLACE, f, z + 3.0)], freeze=freeze, constrained_layers=range(2))

    held = [f"blocks.{i}.{s}" for i in (0, 1) for s in ("attn.hook_pattern", "ln1.hook_scale", "ln2.hook_scale")]
    held += ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]
    held += ["blocks.2.attn.hook_pattern"] if freeze else []
    _, base = lens.record(TOKENS[None], held)

    def write(dst: int) -> Any:
        def edit(y: Tensor) -> Tensor:
            y = y.clone()
            y[0, PLACE[1]] += 3.0 * clt.decoder(0, dst)[f]
            return y

        return edit

    hold = [(site, lambda t, value=base[site]: value.clone()) for site in held]
    expected, _ = lens.record(TOKENS[None], [], [*hold, *((f"blocks.{d}.hook_mlp_out", write(d)) for d in range(3))])
    assert torch.allclose(ours, expected[0], atol=1e-9)
    free = pb.intervene(lens, clt, TOKENS, [(*PLACE, f, z + 3.0)], freeze=freeze)
    assert not torch.allclose(ours, free, atol=1e-4)


@pytest.mark.parametrize("freeze", [None, "attention", "all"])
def test_layers_that_are_not_there_are_refused(freeze: str | None) -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    with pytest.raises(ValueError, match=r"constrained_layers must lie in 0\.\.2, got layers \[3\]"):
        pb.intervene(lens, sets, TOKENS, [], freeze=freeze, constrained_layers=range(4))


@pytest.mark.parametrize(
    ("positions", "same"),
    [
        (slice(2, None), [2, 3, 4, 5]),
        (slice(None), [0, 1, 2, 3, 4, 5]),
        (slice(-2, None), [4, 5]),
        (slice(1, 5, 2), [1, 3]),
        (slice(4, 99), [4, 5]),
    ],
)
def test_a_slice_is_its_positions(positions: slice, same: list[int]) -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    ours = pb.intervene(lens, sets, TOKENS, [(1, positions, 7, 2.0)])
    assert torch.equal(ours, pb.intervene(lens, sets, TOKENS, [(1, p, 7, 2.0) for p in same]))


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ([(1, slice(6, None), 7, 2.0)], r"slice\(6, None, None\) covers none of the prompt's 6 tokens"),
        ([(1, slice(None, None, -1), 7, 2.0)], "step of a slice of positions must be at least 1"),
        ([(1, slice(2, None), 7, 2.0), (1, 3, 7, 1.0)], "layer 1, position 3, feature 7 is set twice"),
        ([(pb.Supernode("a", ((0, 1, 2),)), float("inf"))], "the factor of feature 2 must be finite"),
        ([(pb.Supernode("a", ((0, 1, 2),)),)], r"or \(supernode, factor\), got"),
        ([()], "an intervention is"),
    ],
)
def test_what_cannot_be_set_is_said(wanted: Any, sentence: str) -> None:
    lens = as_lens(models.build("gpt2"))
    with pytest.raises(ValueError, match=sentence):
        pb.intervene(lens, models.random_set(lens), TOKENS, wanted)


@pytest.mark.parametrize("freeze", ["attention", "all", None])
def test_a_supernode_scales_what_its_features_are_in_the_unchanged_run(freeze: str | None) -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    places = [(0, 2), (0, 4), (2, 5)]
    active = [(layer, pos, *first_active(lens, sets, layer, pos)) for layer, pos in places]
    group = pb.Supernode("three", tuple((layer, pos, f) for layer, pos, f, _ in active))
    ours = pb.intervene(lens, sets, TOKENS, [(group, -1.5), (1, 0, 3, 2.0)], freeze=freeze)
    by_hand = [(layer, pos, f, -1.5 * z) for layer, pos, f, z in active]
    assert torch.allclose(ours, pb.intervene(lens, sets, TOKENS, [*by_hand, (1, 0, 3, 2.0)], freeze=freeze), atol=1e-12)


def test_supernodes_are_made_of_node_ids() -> None:
    lens = as_lens(models.build("gpt2"))
    sets = models.random_set(lens)
    graph = pb.attribute(lens, sets, TOKENS)
    chosen = graph.top_features(3)
    ids = [f"{layer}_{feature}_{pos}" for layer, pos, feature in chosen]
    assert set(ids) <= set(graph.node_ids())
    assert pb.Supernode.from_node_ids("top", ids) == pb.Supernode("top", tuple(chosen))
    for wrong in ("E_3_1", "1_-1_4", "0_bias_mlp_2", "own_1_2_3", "P_0"):
        with pytest.raises(ValueError, match=f"'{wrong}' is none"):
            pb.Supernode.from_node_ids("x", [wrong])


def test_an_autoencoder_is_scaled_by_what_it_reads() -> None:
    """It reads the output that it stands in for."""
    lens = as_lens(models.build("gpt2"))
    like = models.random_set(lens)[1]
    sae = pb.TranscoderSet(
        {
            1: pb.Transcoder(
                like.W_enc,
                like.b_enc,
                like.W_dec,
                like.b_dec,
                activation=like.activation,
                hook_in="hook_mlp_out",
                hook_out="hook_mlp_out",
            )
        }
    )
    x = lens.record(TOKENS[None], ["blocks.1.hook_mlp_out"])[1]["blocks.1.hook_mlp_out"]
    ids, values = sae.encode(1, x[0]).row(3)
    group = pb.Supernode("one", ((1, 3, int(ids[0])),))
    ours = pb.intervene(lens, sae, TOKENS, [(group, 3.0)], freeze=None)
    by_hand = [(1, 3, int(ids[0]), 3 * float(values[0]))]
    assert torch.allclose(ours, pb.intervene(lens, sae, TOKENS, by_hand, freeze=None), atol=1e-12)
    with pytest.raises(ValueError, match="constrained patching goes through transcoders"):
        pb.intervene(lens, sae, TOKENS, by_hand, constrained_layers=range(2))
