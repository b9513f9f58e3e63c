"""The two ways of sweeping, side by side and prompt by prompt: the same rows of edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import pullback as pb
from pullback import _C
from pullback.attribution import gather, prompt_by_prompt, taken
from pullback.attribution.local import fitted_transcoders, local_models
from pullback.attribution.prompt_by_prompt import rows_prompt_by_prompt, suits
from pullback.attribution.settings import Settings
from pullback.attribution.side_by_side import rows_side_by_side
from pullback.attribution.stack import Stack
from pullback.attribution.targets import Targets, feature_batch, joined
from pullback.lens import as_lens
from pullback.ops import use_backend
from pullback.ops.cpu.borrow import view
from tests import models
from tests.attribution.test_identities import assert_same_edges, tokens_of
from tests.attribution.test_together import prompts_of, together

NAMES = ("gpt2", "llama", "neox-parallel", "LN-gqa-standard-plain", "RMS-gqa-rotary-gated", "LNPre-mha-standard-plain")


def stack_of(name: str, sets: Any, prompts: Tensor, **options: Any) -> Stack:
    lens = as_lens(models.build(name))
    return Stack(local_models(lens, fitted_transcoders(lens, sets), prompts, **options))


def some_targets(stack: Stack, share: float, generator: torch.Generator) -> Targets:
    """Features of every prompt, by lot and in any order, and directions at the end of the stream."""
    places = [torch.randperm(sum(a.nnz for a in one.values()), generator=generator) for one in stack.acts]
    features = feature_batch(stack, *(own[: max(1, int(share * len(own)))] for own in places))
    d, n = stack.embed.shape[2], stack.n_prompts
    none = torch.zeros(n, dtype=torch.long)
    last = torch.arange(n) * stack.n_pos + torch.randint(0, stack.n_pos, (n,), generator=generator)
    table = torch.randn(n, d, generator=generator, dtype=stack.embed.dtype)
    directions = Targets(none + stack.n_layers, none, last, torch.arange(n), torch.randn(n).to(table), table)
    both = joined([features, directions])
    return both[torch.randperm(len(both), generator=generator)]


@given(
    name=st.sampled_from(NAMES),
    clt=st.booleans(),
    n=st.integers(1, 3),
    length=st.integers(1, models.N_CTX),
    d_sae=st.sampled_from([12, 80]),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    tiles=st.sampled_from([(1, 1), (3, 40), (16, 1 << 16)]),
    spreading=st.sampled_from([-100, 2, 100]),
    seed=st.integers(0, 2**31),
)
def test_rows_are_the_same_both_ways(
    name: str,
    clt: bool,
    n: int,
    length: int,
    d_sae: int,
    share: float,
    tiles: tuple[int, int],
    spreading: int,
    seed: int,
) -> None:
    lens = as_lens(models.build(name))
    # Many features are contracted by panels, few one by one.
    sets = (models.random_clt if clt else models.random_set)(lens, activation="relu", d_sae=d_sae)
    stack = stack_of(name, sets, prompts_of(n, length, seed))
    assert suits(stack)
    targets = some_targets(stack, share, torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_by_prompt, "FEWEST", tiles[0])
        patch.setattr(prompt_by_prompt, "GRADIENTS", tiles[1])
        patch.setattr(taken, "SPREADING", spreading)
        edges, zeroed = rows_prompt_by_prompt(stack, targets)
    expected, nothing = rows_side_by_side(stack, targets)
    scale = float(expected.dense().abs().max())
    torch.testing.assert_close(edges.dense(), expected.dense(), rtol=0, atol=1e-12 * scale)
    assert not zeroed.any()
    assert not nothing.any()


@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "RMS-mha-rotary-gated"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("by_prompt", [False, True])
def test_pairs_of_heads_bring_what_positions_do(
    name: str, n: int, by_prompt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attention on the way down, by each pair of heads and by each position: the same edges."""
    lens = as_lens(models.build(name))
    sets, prompts = models.random_set(lens), prompts_of(n, 6)
    made: list[bool] = []
    pairs_of = taken.Vectors.pairs

    def counted(self: taken.Vectors, *arguments: Any) -> Tensor:
        made.append(True)
        return pairs_of(self, *arguments)

    monkeypatch.setattr(gather, "suits", lambda _stack: by_prompt)
    monkeypatch.setattr(taken.Vectors, "pairs", counted)
    monkeypatch.setattr(taken, "SPREADING", -100)
    by_pairs = together(lens, sets, prompts)
    assert made
    made.clear()
    monkeypatch.setattr(taken, "PATTERNS", 0)
    by_position = together(lens, sets, prompts)
    assert not made
    for pairs, position in zip(by_pairs, by_position, strict=True):
        assert_same_edges(pairs, position, 1e-12)


def test_what_one_way_cannot_do_the_other_does() -> None:
    lens = as_lens(models.build("gpt2"))
    sets, prompts = models.random_set(lens), prompts_of(2, 5)
    assert suits(stack_of("gpt2", sets, prompts))
    assert not suits(stack_of("gpt2", models.random_set(lens, skip=True), prompts))
    assert not suits(stack_of("gpt2", sets, prompts, zero_positions=slice(0, 1)))
    assert not suits(stack_of("gpt2", sets, prompts, precision=torch.bfloat16))
    assert not suits(stack_of("gpt2", sets, prompts, attention_saes=models.random_saes(lens)))
    with use_backend("reference"):
        assert not suits(stack_of("gpt2", sets, prompts))


def test_graphs_are_the_same_to_the_bit_with_any_number_of_threads() -> None:
    lens = as_lens(models.build("llama", torch.float32))
    sets, tokens = models.random_set(lens), tokens_of(7)
    graphs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            graphs.append(pb.attribute(lens, sets, tokens))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(graphs[0].weights, graphs[1].weights)


def test_all_targets_of_all_prompts_are_swept_at_once_prompt_by_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    from pullback.attribution.many import together as many

    lens = as_lens(models.build("llama"))
    sets, prompts = models.random_set(lens), prompts_of(3, 5)
    sizes: list[int] = []
    found = many.stacked_rows

    def counted(stack: Stack, targets: Targets) -> Any:
        sizes.append(len(targets))
        return found(stack, targets)

    monkeypatch.setattr(many, "stacked_rows", counted)
    together(lens, sets, prompts, batch_size=4)
    assert len(sizes) == 2, "what is explained, and all features"
    monkeypatch.setattr(many, "suits", lambda _stack: False)
    sizes.clear()
    together(lens, sets, prompts, batch_size=4)
    assert max(sizes) <= 4 * len(prompts)
    assert Settings(batch_size=4).batch_size == 4


class TestWhatDoesNotFitIsRefused:
    """Two tiles of two targets of one prompt of three positions, vectors of 4, rows of 6 edges."""

    def setup_method(self) -> None:
        def columns(*values: int) -> Tensor:
            return torch.tensor(values)

        self.tiles = [columns(0, 0), columns(2, 3), columns(0, 2), columns(2, 2), columns(0, 12), columns(6, 6)]
        self.row, self.factor, self.pos = columns(0, 1, 1, 0), torch.ones(4), columns(0, 1, 2, 2)
        self.values, self.to = torch.zeros(24), columns(0, 3)
        self.lent: list[Tensor] = []

    def made(self, **changed: Tensor) -> _C.Descent:
        at = {"row": self.row, "factor": self.factor, "pos": self.pos, "values": self.values} | changed
        self.lent += [*self.tiles, *at.values()]
        return _C.Descent([view(t) for t in self.tiles], *(view(t) for t in at.values()), 1, 4)

    @pytest.mark.parametrize(("column", "value"), [(0, 1), (1, 0), (2, 3), (3, -1), (4, 13), (5, 7)])
    def test_tiles(self, column: int, value: int) -> None:
        self.tiles[column][1] = value
        with pytest.raises(ValueError, match="tile 1 does not lie within"):
            self.made()

    def test_targets(self) -> None:
        with pytest.raises(ValueError, match="outside its tile"):
            self.made(pos=self.pos + 1)
        with pytest.raises(ValueError, match="factor must"):
            self.made(factor=torch.ones(3))

    def test_steps(self) -> None:
        descent = self.made()
        table, mixing, scale = torch.ones(2, 3, 4), torch.ones(1, 3, 3, 3), torch.ones(1, 3)
        with pytest.raises(ValueError, match="no such row"):
            descent.spread(view(table[:1]), view(mixing), view(scale), None, False)
        with pytest.raises(ValueError, match="no patterns and scales of 3 positions"):
            descent.spread(view(table), view(mixing[..., :2]), view(scale), None, False)
        leaf = torch.ones(1, 3, 4)
        descent.contract_leaves([view(leaf)], [view(self.to)])
        with pytest.raises(ValueError, match="no such columns"):
            descent.contract_leaves([view(leaf)], [view(self.to + 1)])
        with pytest.raises(ValueError, match="as many positions"):
            descent.contract_leaves([view(leaf[:, :2])], [view(self.to)])
        with pytest.raises(ValueError, match="no such columns"):
            descent.contract_own(view(table[:, 0]), view(leaf), view(self.to + 1))
        with pytest.raises(ValueError, match="no such columns"):
            descent.contract_written(view(torch.ones(1, 3, 3, 4)), 1, view(self.to + 1))
        with pytest.raises(ValueError, match="3 heads cannot read 4"):
            descent.through_heads(view(torch.ones(4, 4)), view(mixing), view(scale), view(torch.ones(4, 4)), 3)
        indptr, ids, values = torch.tensor([0, 2, 4, 4]), torch.zeros(4, dtype=torch.int32), torch.ones(4)
        W = torch.ones(1, 4)
        with pytest.raises(ValueError, match="no such columns"):
            descent.contract(view(indptr), view(ids), view(values), view(W), 3, view(self.to))
        assert not self.values.any()
