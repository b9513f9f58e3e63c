"""The mixing buffer: nothing lost, nothing doubled, and the same batches after a restart."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pullback.training.mixing import Mixed

SIZES = st.lists(st.integers(1, 30), min_size=0, max_size=12)


def stream(sizes):
    start = 0
    for n in sizes:
        ids = torch.arange(start, start + n).float()
        yield [ids[:, None], -ids[:, None].repeat(1, 2)]
        start += n


def mix(rows, batch, capacity, seed):
    return Mixed(rows, batch, capacity, torch.Generator().manual_seed(seed))


@given(sizes=SIZES, batch=st.integers(1, 9), capacity=st.integers(1, 40), seed=st.integers(0, 99))
def test_mixing_loses_nothing_doubles_nothing_and_keeps_rows_aligned(sizes, batch, capacity, seed):
    out = list(mix(stream(sizes), batch, capacity, seed))
    assert all(torch.equal(x.repeat(1, 2), -y) for x, y in out)
    assert sorted(v for x, _ in out for v in x.flatten().tolist()) == [float(i) for i in range(sum(sizes))]
    assert all(len(x) == batch for x, _ in out[:-1])
    again = list(mix(stream(sizes), batch, capacity, seed))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(out, again, strict=True))


@given(
    sizes=SIZES, batch=st.integers(1, 9), capacity=st.integers(1, 40), seed=st.integers(0, 99), at=st.integers(0, 99)
)
def test_a_restarted_buffer_gives_the_batches_that_were_to_come(sizes, batch, capacity, seed, at):
    whole = [x for x, _ in mix(stream(sizes), batch, capacity, seed)]
    at = at % (len(whole) + 1)
    rows = stream(sizes)
    first = mix(rows, batch, capacity, seed)
    for _ in range(at):
        next(first)
    second = mix(rows, batch, capacity, seed + 1)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, (b, _) in zip(whole[at:], second, strict=True))


def test_a_batch_mixes_tokens_of_many_prompts():
    prompts = ([torch.full((32, 1), float(i))] for i in range(64))
    first = next(mix(prompts, 32, 512, 0))[0]
    assert len(first.unique()) > 8
