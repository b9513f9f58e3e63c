"""Mean attributions: a stream of batches against the definitions, over dense activations."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.attribution.pullbacks.sums import firings
from pullback.ops import SparseActivations
from tests import models
from tests.attribution.pullbacks.test_pullback import CLOSE, build

IDS = [9, 2, 31]


def tokens() -> Tensor:
    drawn = torch.randint(0, models.VOCAB - 2, (9, 7), generator=torch.Generator().manual_seed(3))
    drawn[:4, 0] = models.VOCAB - 1
    return drawn


def ranked(a: Tensor, b: Tensor) -> float:
    return pd.Series(a.numpy()).rank().corr(pd.Series(b.numpy()).rank())


def run(lens: Any, sets: Any, prompts: Tensor | list[Tensor], **options: Any) -> Any:
    return pb.mean_attribution(lens, sets, prompts, 2, IDS, verbose=False, **options)


def activations(lens: Any, sets: Any, keep: Tensor) -> dict[int, Tensor]:
    io = lens.mlp_io(tokens())
    return {layer: sets.encode(layer, io[layer][0][keep]).to_dense() for layer in range(3)}


@pytest.mark.parametrize("cross_layer", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "neox-parallel"])
def test_they_are_their_definition(name: str, cross_layer: bool) -> None:
    lens = build(name)
    sets = (models.random_clt if cross_layer else models.random_set)(lens)
    keep = torch.ones(9, 7, dtype=torch.bool)
    keep[:4, 0] = False
    keep[5, 3:] = False
    mask = torch.ones_like(keep)
    mask[5, 3:] = False
    found = run(lens, sets, tokens(), mask=mask, batch_size=4)
    z = activations(lens, sets, keep)
    fires = z[2][:, IDS] > 0
    assert found.sums.n_tokens == int(keep.sum())
    assert found.targets == ["2_9", "2_2", "2_31"]
    for layer in (0, 1):
        P, a = pb.pullback(lens, sets, (2, IDS), layer).values, z[layer]
        assert torch.allclose(found.mean(layer), (a[:, None] * P).mean(0), **CLOSE)
        where = torch.stack([(a * P[n])[fires[:, n]].sum(0) / max(1, int(fires[:, n].sum())) for n in range(3)])
        assert torch.allclose(found.while_active(layer), where, **CLOSE)
        count = (a != 0).sum(0)
        assert torch.allclose(found.per_firing(layer), a.sum(0) * P / count.clamp(min=1), **CLOSE)
        assert torch.allclose(found.frequency(layer), (a != 0).double().mean(0), **CLOSE)
        both = torch.stack([(a[fires[:, n]] > 0).double().sum(0) / max(1, int(fires[:, n].sum())) for n in range(3)])
        assert torch.allclose(found.together(layer), both, **CLOSE)
        assert float(both.max()) > 0


def test_the_order_of_the_work_does_not_matter() -> None:
    lens = build("gpt2")
    sets = models.random_set(lens)
    whole = run(lens, sets, tokens(), batch_size=100)
    started = run(lens, sets, tokens()[:4], batch_size=3).sums.state_dict()
    kept = {name: value.clone() for name, value in started.items()}
    fresh = pb.MeanActivations(sets, 2, torch.tensor(IDS), [0, 1]).load_state_dict(kept)
    resumed = run(lens, sets, tokens(), batch_size=2, into=fresh)
    for other in (run(lens, sets, [tokens()[:5], tokens()[5:]]), resumed):
        assert other.sums.n_prompts == 9
        for layer in (0, 1):
            for table in ("mean", "while_active", "per_firing", "frequency", "together"):
                assert torch.allclose(getattr(other, table)(layer), getattr(whole, table)(layer), **CLOSE)


def test_firings_of_targets_in_any_order_are_rows_in_order() -> None:
    z = torch.tensor([[0.0, 2.0, 0.5, 0.0], [3.0, 0.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    found = firings(SparseActivations.from_dense(z), torch.tensor([3, 2, 0])).validate()
    assert found.to_dense().tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 0]]


def test_an_interrupt_loses_nothing() -> None:
    lens = build("gpt2")
    sets = models.random_set(lens)
    sums = pb.MeanActivations(sets, 2, torch.tensor(IDS), [0, 1])

    def stopped() -> Any:
        yield tokens()[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(lens, sets, stopped(), into=sums)
    assert sums.n_prompts == 5
    found, whole = run(lens, sets, tokens(), into=sums), run(lens, sets, tokens())
    assert torch.allclose(found.mean(1), whole.mean(1), **CLOSE)


def test_tables_and_comparisons() -> None:
    lens = build("gpt2")
    sets = models.random_set(lens)
    found = run(lens, sets, tokens())
    table = found.to_pandas(6)
    assert table.target.tolist() == ["2_9"] * 6 + ["2_2"] * 6 + ["2_31"] * 6
    means = torch.cat([found.mean(0), found.mean(1)], 1)
    best = means.abs().argsort(dim=1, descending=True, stable=True)[:, :6]
    assert table["mean"].tolist() == pytest.approx(means.gather(1, best).flatten().tolist())
    one = table.iloc[7]
    assert one.pullback == pytest.approx(float(found.pullbacks[one.layer][1, one.source]))
    assert one.together == pytest.approx(float(found.together(one.layer)[1, one.source]))
    assert one.frequency == pytest.approx(float(found.frequency(one.layer)[one.source]))

    compared = found.compare(40)
    assert compared.layer.tolist() == [0, 0, 0, 1, 1, 1]
    # Of all 40 features, those that ever fired are shared.
    ever = found.frequency(0).gt(0).double().mean()
    assert compared.overlap[0] == pytest.approx(float(ever))
    for row, (layer, n) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]):
        P = found.pullbacks[layer][n]
        for column, values in (("spearman", found.mean(layer)[n]), ("spearman_active", found.while_active(layer)[n])):
            assert compared[column][row] == pytest.approx(ranked(P, values), abs=1e-9, nan_ok=True)


def test_what_is_wired_and_never_used_is_listed() -> None:
    """A source of large weight that never fires with the target heads the list; one that does is not in it."""
    lens = build("gpt2")
    sets = models.random_set(lens)
    found = run(lens, sets, tokens())
    together = found.together(0)
    silent, used = int(together[0].argmin()), int(together[0].argmax())
    found.pullbacks[0][0, [silent, used]] = torch.tensor([100.0, 50.0], dtype=torch.float64)
    assert float(together[0, silent]) == 0 < float(together[0, used])
    listed = found.interference(5)
    first = listed.iloc[0]
    assert (first.target, first.layer, first.source) == ("2_9", 0, silent)
    assert used not in listed[(listed.target == "2_9") & (listed.layer == 0)].source.tolist()
    assert (listed.together <= 1e-3).all()
    found.sums.firings[0] = 0
    assert "2_9" not in set(found.interference(5).target)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layer": 0}, "give targets above some layer"),
        ({"layers": [2]}, "a source must lie in a lower layer"),
        ({"features": [1, 1]}, "named twice"),
        ({"tokens": tokens()[0]}, r"are \[n, T\], got \[7\]"),
        ({"tokens": [tokens()], "mask": torch.ones(9, 7)}, "a mask goes with one tensor"),
    ],
)
def test_what_cannot_be_counted(options: dict[str, Any], sentence: str) -> None:
    lens = build("gpt2")
    sets = models.random_set(lens)
    with pytest.raises(ValueError, match=sentence):
        pb.mean_attribution(lens, sets, **({"tokens": tokens(), "layer": 2, "features": IDS} | options))


def test_sums_of_something_else() -> None:
    lens = build("gpt2")
    sets = models.random_set(lens)
    sums = pb.MeanActivations(sets, 2, torch.tensor([4]), [0, 1])
    with pytest.raises(ValueError, match="`into` counts features of layer 2"):
        run(lens, sets, tokens(), into=sums)
    with pytest.raises(ValueError, match=r"the state counts features \[4\] of layer 2"):
        pb.MeanActivations(sets, 2, torch.tensor([5]), [0, 1]).load_state_dict(sums.state_dict())
    with pytest.raises(ValueError, match="k must be at least 1"):
        run(lens, sets, tokens()).compare(0)
