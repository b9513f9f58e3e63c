"""The two ways of sweeping, side by side and prompt by prompt: the same rows of edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import pullback as pb
from pullback.attribution import gather
from pullback.attribution.linear import prompt_by_prompt, taken
from pullback.attribution.linear.prompt_by_prompt import rows_prompt_by_prompt, suits
from pullback.attribution.linear.side_by_side import rows_side_by_side
from pullback.attribution.local import fitted_transcoders, local_models
from pullback.attribution.stack import Stack
from pullback.attribution.targets import Targets, feature_batch, joined
from pullback.lens import as_lens
from pullback.ops import use_backend
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
    assert len(sizes) == 1, "all features, and what is explained besides"
    monkeypatch.setattr(many, "suits", lambda _stack: False)
    sizes.clear()
    together(lens, sets, prompts, batch_size=4)
    assert max(sizes) <= 4 * len(prompts)
    assert len(sizes) > 2
