"""From tokens to batches: every kind of source."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from pullback.training.source import token_batches

IDS = torch.arange(12).view(4, 3)
MASK = torch.tensor([[True, True, False]] * 4)


def kept(batches):
    """The tokens that count, batch by batch."""
    return [ids[mask].tolist() for ids, mask in batches]


def test_a_tensor_is_cut_into_batches_in_order(lens):
    assert kept(token_batches(lens, IDS, batch_size=3)) == [list(range(9)), [9, 10, 11]]
    assert kept(token_batches(lens, IDS[0], batch_size=3)) == [[0, 1, 2]]
    assert kept(token_batches(lens, IDS, batch_size=4, mask=MASK)) == [[0, 1, 3, 4, 6, 7, 9, 10]]
    assert kept(token_batches(lens, IDS, batch_size=4, context_size=1)) == [[0, 3, 6, 9]]


def test_strings_and_token_lists_are_padded_and_the_padding_is_masked(lens):
    for source in (["a", "bcd"], [[97 % 20], [98 % 20, 99 % 20, 100 % 20]]):
        ((ids, mask),) = token_batches(lens, source, batch_size=2)
        assert ids.shape == (2, 3)
        assert mask.tolist() == [[True, False, False], [True, True, True]]
        assert ids[mask].tolist() == [17, 18, 19, 0]
    assert kept(token_batches(lens, "bcd", batch_size=2)) == [[18, 19, 0]]


BATCHES = [(IDS[:2], MASK[:2]), IDS[2:]]
BATCHES_KEPT = [[0, 1, 3, 4], [6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize(
    "source",
    [BATCHES, tuple(BATCHES), iter(BATCHES), lambda: iter(BATCHES)],
    ids=["list", "tuple", "iterator", "function"],
)
def test_batches_are_taken_as_they_come(lens, source):
    assert kept(token_batches(lens, source, batch_size=99)) == BATCHES_KEPT


def test_a_pair_is_one_batch_and_a_function_may_return_one(lens):
    assert kept(token_batches(lens, (IDS, MASK), batch_size=4)) == [[0, 1, 3, 4, 6, 7, 9, 10]]
    for made in (IDS, (IDS, MASK)):
        assert len(kept(islice(token_batches(lens, lambda made=made: made, batch_size=4, repeat=True), 5))) == 5


def test_repeating_reshuffles_prompts_and_restarts_lists_but_not_iterators(lens):
    g = torch.Generator().manual_seed(0)
    epochs = [
        [
            row
            for batch in islice(token_batches(lens, IDS, batch_size=2, generator=g, repeat=True), 6)
            for row in batch[0].tolist()
        ]
    ][0]
    assert all(sorted(epochs[i : i + 4]) == IDS.tolist() for i in (0, 4, 8))
    assert len({str(epochs[i : i + 4]) for i in (0, 4, 8)}) > 1
    assert kept(islice(token_batches(lens, BATCHES, batch_size=1, repeat=True), 4)) == BATCHES_KEPT * 2
    assert kept(islice(token_batches(lens, lambda: iter(BATCHES), batch_size=1, repeat=True), 4)) == BATCHES_KEPT * 2
    assert kept(token_batches(lens, iter(BATCHES), batch_size=1, repeat=True)) == BATCHES_KEPT
    assert kept(token_batches(lens, iter([]), batch_size=1, repeat=True)) == []
    assert kept(token_batches(lens, lambda: iter([]), batch_size=1, repeat=True)) == []


@pytest.mark.parametrize(
    ("source", "mask", "sentence"),
    [
        ([], None, "empty list"),
        (IDS.float(), None, "tokens must be integers"),
        (IDS[:0], None, "at least one token"),
        (IDS[None], None, "tokens must be integers"),
        (IDS, MASK[:2], r"mask must be torch.bool \[4, 3\] like the tokens, got torch.bool \[2, 3\]"),
        (IDS, MASK.long(), "got torch.int64"),
        (["ab"], MASK, "masked by its own lengths"),
        (BATCHES, MASK, "batches bring theirs"),
        (7, None, "got int"),
    ],
)
def test_what_cannot_be_read_is_refused(lens, source, mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(token_batches(lens, source, batch_size=2, mask=mask))
