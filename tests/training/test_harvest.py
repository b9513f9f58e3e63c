"""Activations straight from the model: which rows, from how many forward passes, and what happens without memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pullback._util.memory import out_of_memory
from pullback.training.harvest import Harvest, Harvester
from pullback.training.masks import Excluded

EVERY = Excluded()


def harvester(lens, layers=(0, 1), dtype=torch.float32, excluded=EVERY):
    return Harvester(lens, layers, "a", "b", excluded, torch.zeros(1, dtype=dtype))


def test_rows_of_all_layers_come_from_one_forward_pass(lens, tokens):
    mask = torch.rand(24, 10, generator=torch.Generator().manual_seed(0)) > 0.5
    (item,) = harvester(lens, dtype=torch.float64).harvest([(tokens, mask)])
    x0, y0, x1, y1 = item.rows
    assert lens.forward_passes == 1
    assert x0.dtype == torch.float64
    assert torch.equal(item.token_ids, tokens[mask])
    for layer, (x, y) in enumerate(((x0, y0), (x1, y1))):
        expected = lens.mlp_io(tokens)[layer]
        torch.testing.assert_close(x.float(), expected[0][mask])
        torch.testing.assert_close(y.float(), expected[1][mask])


def test_excluded_tokens_are_run_and_left_out(lens, tokens):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    (item,) = harvester(lens, excluded=replace(EVERY, special=(7,))).harvest([(tokens, mask)])
    assert torch.equal(item.token_ids, tokens[tokens != 7])
    assert torch.equal(item.rows[0], lens.W_E[tokens[tokens != 7]])
    assert lens.seen[0].shape == tokens.shape


def test_a_source_of_masked_tokens_only_ends_with_a_sentence(lens, tokens):
    nothing = iter(lambda: (tokens[:1, :1], torch.zeros(1, 1, dtype=torch.bool)), None)
    with pytest.raises(ValueError, match="no token to train on"):
        next(harvester(lens).harvest(nothing))


def test_a_batch_that_does_not_fit_is_halved_for_good_and_said_so(lens, tokens, capsys):
    whole = harvester(lens)
    batches = [(ids, ids != 3) for ids in (tokens[:8], tokens[8:16])]
    expected = [item.rows for item in whole.harvest(batches)]
    fits = lens.mlp_io

    def small(ids, *args):
        if len(ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return fits(ids, *args)

    lens.mlp_io = small
    lens.seen.clear()
    items = list(harvester(lens).harvest(batches))
    assert [len(ids) for ids in lens.seen] == [2] * 8
    assert items[-1].position.limit == 2
    assert capsys.readouterr().out.count("do not fit into memory") == 2
    for one, other in zip(expected, items, strict=True):
        for a, b in zip(one, other.rows, strict=True):
            torch.testing.assert_close(a, b)


def test_an_error_that_is_not_about_memory_or_cannot_be_helped_comes_through(lens, tokens):
    def fails(*_):
        raise RuntimeError(said)

    lens.mlp_io = fails
    for said in ("size mismatch", "CUDA out of memory"):
        with pytest.raises(RuntimeError, match=said):
            next(harvester(lens).harvest([(tokens[:1], tokens[:1] > 0)]))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(KeyError("out of memory"))


def stream(lens, batches, prefetch=0):
    return Harvest(
        harvester(lens),
        lambda: batches,
        batch_size=16,
        capacity=64,
        generator=torch.Generator().manual_seed(1),
        prefetch=prefetch,
    )


def same(one, other):
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_resumed_stream_gives_the_batches_that_were_to_come(lens, tokens, prefetch):
    batches = [(ids, ids != 3) for ids in tokens.split(2)]
    whole = list(stream(lens, batches))
    first = stream(lens, batches, prefetch)
    start = [next(first) for _ in range(4)]
    state = first.state_dict()
    first.close()
    second = stream(lens, batches, prefetch)
    second.load_state_dict(state)
    before = lens.forward_passes
    rest = list(second)
    assert same(whole, start + rest)
    assert lens.forward_passes - before < len(batches), "what was used before is not run again"


def test_other_tokens_are_not_resumed_on(lens, tokens):
    batches = [(ids, ids != 3) for ids in tokens.split(2)]
    first = stream(lens, batches)
    next(first)
    state = first.state_dict()
    others = [(ids.flip(0), mask) for ids, mask in batches]
    for given, sentence in ((others, "not the tokens that the run began with"), (batches[:1], "ended after 1")):
        second = stream(lens, given)
        second.load_state_dict(state)
        with pytest.raises(ValueError, match=sentence):
            list(second)


def test_under_autocast_the_model_multiplies_in_bfloat16(lens, tokens):
    everything = torch.ones_like(tokens, dtype=torch.bool)
    like = torch.zeros(1)
    full, half = (
        next(Harvester(lens, [0, 1], "a", "b", EVERY, like, autocast).harvest([(tokens, everything)])).rows
        for autocast in (False, True)
    )
    assert all(rows.dtype == torch.float32 for rows in half)
    assert torch.equal(half[0], full[0])  # the embedding, which nothing multiplies
    assert not torch.equal(half[1], full[1])
    torch.testing.assert_close(half[1], full[1], rtol=0.02, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half[1], lens.mlp_io(tokens)[0][1].flatten(0, 1).float())
