"""Causal tests with features that write to several layers: what is added at each, and what it is worth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.causal import Swap, interchange, swap_scores
from pullback.lens import as_lens
from tests import models
from tests.causal.exact import prompts

BASE, SOURCE = prompts(2, 6, seed=1)
TYINGS = ["none", "per_source", "per_target"]


def first_active(lens: Any, clt: Any, layer: int, pos: int) -> tuple[int, float]:
    x, _ = lens.mlp_io(BASE[None], [layer])[layer]
    ids, values = clt.encode(layer, x[0]).row(pos)
    return int(ids[0]), float(values[0])


def patched(lens: Any, pos: int, changes: dict[int, Tensor]) -> Tensor:
    def add(change: Tensor) -> Any:
        def fn(_x: Tensor, y: Tensor) -> Tensor:
            y = y.clone()
            y[:, pos] += change
            return y

        return fn

    with lens.patch_mlp({layer: add(change) for layer, change in changes.items()}):
        return lens.logits(BASE[None])[0]


@pytest.mark.parametrize("tying", TYINGS)
@pytest.mark.parametrize("freeze", ["attention", "all", None])
def test_the_present_value_changes_nothing(tying: str, freeze: str | None) -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    clt = models.random_clt(lens, tying=tying, skip=True)
    wanted = [(layer, 3, *first_active(lens, clt, layer, 3)) for layer in clt.layers]
    assert torch.allclose(pb.intervene(lens, clt, BASE, wanted, freeze=freeze), lens.logits(BASE[None])[0], atol=1e-9)


@pytest.mark.parametrize("tying", TYINGS)
@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "neox-parallel"])
def test_a_new_value_is_a_patch_of_every_output_it_writes_to(name: str, tying: str) -> None:
    lens = as_lens(models.build(name))
    clt = models.random_clt(lens, tying=tying)
    f, z = first_active(lens, clt, 1, 3)
    ours = pb.intervene(lens, clt, BASE, [(1, 3, f, z + 2.5)], freeze=None)
    expected = patched(lens, 3, {dst: 2.5 * clt.decoder(1, dst)[f] for dst in (1, 2)})
    assert torch.allclose(ours, expected, atol=1e-9)
    assert not torch.allclose(ours, patched(lens, 3, {1: 2.5 * clt.decoder(1, 1)[f]}), atol=1e-4)


@pytest.mark.parametrize("tying", TYINGS)
def test_interchange_takes_what_a_feature_writes_to_all_layers(tying: str) -> None:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    clt = models.random_clt(lens, tying=tying)
    chosen = torch.arange(40) % 3 != 0
    ours = interchange(lens, clt, BASE[None], SOURCE[None], [Swap.features(0, 4, chosen)])
    z = [clt.encode(0, lens.mlp_io(t[None], [0])[0][0][0, 4]).to_dense()[0] * chosen for t in (SOURCE, BASE)]
    expected = patched(lens, 4, {dst: (z[0] - z[1]) @ clt.decoder(0, dst) for dst in (0, 1, 2)})
    assert torch.allclose(ours[0], expected[-1], atol=1e-9)


@pytest.mark.parametrize("tying", TYINGS)
def test_scores_are_derivatives_of_the_interchange(tying: str) -> None:
    """From the base run alone: source equals base but for what is swapped in, to first order."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    clt = models.random_clt(lens, tying=tying)
    target, other = torch.tensor([3]), torch.tensor([7])
    _, layer, feature, score = swap_scores(lens, clt, BASE[None], BASE[None], target, other, [0, 1], 4)
    assert float(score.abs().max()) < 1e-9, "nothing is taken from oneself"
    _, layer, feature, score = swap_scores(lens, clt, BASE[None], SOURCE[None], target, other, [0, 1], 4)
    x = [{i: x[0, 4] for i, (x, _) in lens.mlp_io(t[None]).items()} for t in (SOURCE, BASE)]

    def slope(i: int, f: int, tokens: Tensor) -> float:
        eps = 1e-5
        pulls = []
        for sign in (1, -1):
            changes = {dst: sign * eps * clt.decoder(i, dst)[f] for dst in clt.targets(i)}

            def add(dst: int, changes: dict[int, Tensor] = changes) -> Any:
                def fn(_x: Tensor, y: Tensor) -> Tensor:
                    y = y.clone()
                    y[:, 4] += changes[dst]
                    return y

                return fn

            with lens.patch_mlp({dst: add(dst) for dst in changes}):
                logits = lens.logits(tokens[None])[0, -1]
            pulls.append(float(logits[3] - logits[7]))
        return (pulls[0] - pulls[1]) / (2 * eps)

    for n in range(0, len(score), 3):
        i, f = int(layer[n]), int(feature[n])
        z = [float(clt.encode(i, one[i]).to_dense()[0, f]) for one in x]
        expected = (z[0] - z[1]) * (slope(i, f, BASE) + slope(i, f, SOURCE)) / 2
        assert float(score[n]) == pytest.approx(expected, abs=1e-6)
