"""The replacement model of a cross-layer transcoder: features write onward while the pass goes up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pullback.lens import as_lens
from tests import models

TOKENS = torch.randint(0, models.VOCAB, (3, 6), generator=torch.Generator().manual_seed(1))


def by_hand(lens: Any, clt: Any, replaced: list[int]) -> Tensor:
    """Sums kept in the hooks themselves."""
    sums: dict[int, Any] = {dst: clt[dst].b_dec for dst in clt.layers}

    def write(layer: int) -> Any:
        def fn(x: Tensor, y: Tensor) -> Tensor:
            z = clt.encode(layer, x).to_dense()
            for dst in clt.targets(layer):
                sums[dst] = sums[dst] + (z @ clt.decoder(layer, dst)).view_as(y)
            skip = 0 if clt.skip(layer) is None else x @ clt.skip(layer).T
            return sums[layer] + skip if layer in replaced else y

        return fn

    with lens.patch_mlp({layer: write(layer) for layer in clt.layers}):
        return lens.logits(TOKENS)


@pytest.mark.parametrize("tying", ["none", "per_source", "per_target"])
@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "neox-parallel"])
@pytest.mark.parametrize("replaced", [None, [2], [0, 1]], ids=str)
def test_replacement_is_the_sum_as_it_grows(name: str, tying: str, replaced: list[int] | None) -> None:
    lens = as_lens(models.build(name))
    clt = models.random_clt(lens, tying=tying, skip=True)
    plain = lens.logits(TOKENS)
    expected = by_hand(lens, clt, replaced or clt.layers)
    with lens.replace(clt, replaced):
        for _ in range(2):
            torch.testing.assert_close(lens.logits(TOKENS), expected)
    assert torch.equal(lens.logits(TOKENS), plain)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_another_models_or_layers_are_refused() -> None:
    lens = as_lens(models.build("gpt2"))
    with (
        pytest.raises(ValueError, match=r"no transcoder for layers \[1\]; it has \[0, 2\]"),
        lens.replace(models.random_clt(lens, layers=[0, 2]), [1]),
    ):
        pass
    with pytest.raises(ValueError, match="other weights"):
        lens.check(models.random_clt(as_lens(models.build("gpt2", seed=1))))
