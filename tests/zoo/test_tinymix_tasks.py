"""tiny-mix's samplers: right answers, fixed splits, repeatable draws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pullback.zoo.tinymix import tasks, train, vocab

WORD = vocab.WORDS


def texts(batch: tasks.Batch) -> list[str]:
    return [" ".join(WORD[i] for i in row[1:] if i != tasks.PAD_ID) for row in batch.tokens.tolist()]


def asked(batch: tasks.Batch) -> list[tuple[list[str], str]]:
    """(words up to the answer position, wanted word) of every answer."""
    places = zip(batch.rows.tolist(), batch.positions.tolist(), batch.answers.tolist(), strict=True)
    return [([WORD[i] for i in batch.tokens[row, 1 : last + 1]], WORD[answer]) for row, last, answer in places]


def drawn(task: str, held_out: bool, n: int = 400) -> tasks.Batch:
    return tasks.SAMPLERS[task](n, torch.Generator().manual_seed(5), held_out)


def test_vocabulary_is_about_three_hundred_distinct_words():
    assert len(WORD) == len(set(WORD)) == 298
    assert WORD[:3] == ("<pad>", "<bos>", "<unk>")
    assert len(vocab.STATES) == len(set(vocab.CAPITALS)) == 12
    assert len(set(vocab.CITIES)) == 48
    assert not set(vocab.CITIES) & (set(vocab.CAPITALS) | set(vocab.STATES) | set(vocab.NAMES))
    assert all(word == word.lower() and " " not in word for word in WORD)


@settings(deadline=None, max_examples=25)
@given(task=st.sampled_from(tasks.TASKS), n=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_batches_are_well_formed_and_repeatable(task, n, seed):
    before = torch.random.get_rng_state()
    batch, again = tasks.evaluation_prompts(task, n, seed), tasks.evaluation_prompts(task, n, seed)
    assert torch.equal(torch.random.get_rng_state(), before), "samplers must not touch the global random state"
    for one, other in zip(vars(batch).values(), vars(again).values(), strict=True):
        assert torch.equal(one, other)
    assert batch.tokens.shape[0] == n
    assert batch.tokens.shape[1] <= 48
    assert (batch.tokens[:, 0] == tasks.BOS_ID).all()
    assert not batch.mask[:, 0].any()
    assert torch.equal(batch.mask.sum(1) + 1, (batch.tokens != tasks.PAD_ID).sum(1))
    assert batch.mask[batch.rows, batch.positions].all(), "answers are read at real tokens"
    torch.testing.assert_close(batch.targets.sum(1), torch.ones(len(batch.rows)))
    weights = batch.weights()
    per_row = torch.zeros(n).index_add(0, batch.rows, weights)
    torch.testing.assert_close(per_row[per_row > 0], torch.ones(int((per_row > 0).sum())))


def test_greater_than_is_uniform_over_later_years():
    batch = drawn("greater_than", False)
    for text, target in zip(texts(batch), batch.targets, strict=True):
        words = text.split()
        year = int(words[7])
        assert words[6] == words[-1]
        wanted = {f"{later:02d}" for later in range(year + 1, 100)}
        assert {WORD[i] for i in target.nonzero().flatten()} == wanted
        assert target.max() == pytest.approx(1 / len(wanted))


def test_ioi_answer_is_the_name_said_once():
    for held_out in (False, True):
        seen = set()
        for prefix, answer in asked(drawn("ioi", held_out)):
            names = [word for word in prefix if word in vocab.NAMES]
            assert names.count(answer) == 1
            assert len(names) == 3
            assert len(set(names)) == 2
            assert prefix[-1] == "to"
            seen.add((prefix[0], names[0] == answer))
        assert seen == {("when", True), ("when", False), ("after", True), ("after", False)}


def test_induction_answers_continue_the_list():
    for held_out in (False, True):
        batch = drawn("induction", held_out, 50)
        for prefix, answer in asked(batch):
            earlier = prefix[:-1]
            assert prefix[-1] in earlier
            assert earlier[earlier.index(prefix[-1]) + 1 :][:1] == [answer] or answer == prefix[0]
        for row, text in enumerate(texts(batch)):
            words = text.split()
            size = len(set(words))
            assert 5 <= size <= 15
            assert len(words) == (2 * size if held_out else tasks.REPEATED_LENGTH)
            assert words == [words[i % size] for i in range(len(words))]
            assert batch.positions[batch.rows == row].tolist() == list(range(size + 1, len(words)))


def test_brackets_are_balanced_and_ask_for_every_closer():
    pairs = dict(zip(vocab.OPENERS, vocab.CLOSERS, strict=True))
    batch = drawn("brackets", True)
    places = zip(batch.rows.tolist(), batch.positions.tolist(), strict=True)
    wanted = dict(zip(places, batch.answers.tolist(), strict=True))
    deepest = 0
    for row, text in enumerate(texts(batch)):
        stack = []
        for place, bracket in enumerate(text.split()):
            if bracket in pairs:
                stack.append(bracket)
                assert (row, place) not in wanted
            else:
                assert bracket == pairs[stack.pop()]
                assert WORD[wanted.pop((row, place))] == bracket
            deepest = max(deepest, len(stack))
        assert not stack
    assert not wanted
    assert deepest == tasks.MAX_DEPTH


def test_two_hop_prompts_are_the_whole_population():
    prompts = tasks.two_hop_prompts()
    assert len(prompts) == len({prompt.city for prompt in prompts}) == 48
    assert sum(prompt.held_out for prompt in prompts) == 12
    dallas = prompts[0]
    assert dallas == ("dallas", "texas", "austin", "the capital of the state containing dallas is", 7, False)
    for prompt in prompts:
        assert ("<bos> " + prompt.prompt).split()[prompt.city_position] == prompt.city
        assert vocab.STATES[prompt.state][0] == prompt.capital


def test_splits_are_disjoint_and_of_the_stated_size():
    assert len(tasks.HELD_OUT_YEARS) == round(0.1 * 9 * 96)
    assert len(tasks.HELD_OUT_PAIRS) == 19
    assert not set(tasks.HELD_OUT_YEARS) & set(tasks.TRAIN_YEARS)
    assert not set(tasks.HELD_OUT_PAIRS) & set(tasks.TRAIN_PAIRS)
    for task in ("greater_than", "ioi", "two_hop"):
        assert not keys(task, drawn(task, False)) & keys(task, drawn(task, True)), task


def keys(task: str, batch: tasks.Batch) -> set:
    """What the split of `task` is about, one per prompt."""
    words = [text.split() for text in texts(batch)]
    if task == "greater_than":
        return {(w[6], w[7]) for w in words}
    if task == "ioi":
        return {frozenset(set(w) & set(vocab.NAMES)) for w in words}
    return {w[6] for w in words}


def test_held_out_cities_never_stand_in_a_two_hop_prompt_of_transcoder_training():
    held_out = {vocab.IDS[city.name] for city in tasks.HELD_OUT_CITIES}
    containing = vocab.IDS["containing"]
    facts = set()
    for tokens, mask in tasks.training_batches(seed=3, n_batches=80):
        assert tokens.shape == mask.shape
        assert mask.dtype == torch.bool
        assert 850 <= int(mask.sum()) <= 1300
        for row in tokens.tolist():
            if containing in row:
                assert not held_out & set(row)
            facts |= held_out & set(row)
    assert facts == held_out, "their one-hop facts are trained on"


def test_interchange_pairs_of_training_never_answer_a_held_out_two_hop():
    held_out = {vocab.IDS[city.name] for city in tasks.HELD_OUT_CITIES}
    containing = vocab.IDS["containing"]
    capital_of = {city.name: vocab.IDS[city.capital] for city in tasks.ALL_CITIES}
    state_of = {city.name: vocab.IDS[city.state] for city in tasks.ALL_CITIES}
    recipe, generator, crossed = train.Recipe(n_interchange=200), torch.Generator().manual_seed(0), 0
    pairs = train.sample_interchange(recipe, generator)
    for row in range(200):
        base, source = pairs.base[row].tolist(), pairs.source[row].tolist()
        one, two = base[pairs.base_city[row]], source[pairs.source_city[row]]
        assert one != two
        assert base[pairs.last[row]] != tasks.PAD_ID
        if containing in base or containing in source:
            assert not {one, two} & held_out
        answers = capital_of if containing in base else state_of
        assert pairs.wanted[row] == answers[WORD[two]]
        crossed += (containing in base) != (containing in source)
    assert crossed > 50, "the two prompts must often differ in template"


def test_training_batches_repeat_and_differ_by_seed():
    first = [tokens for tokens, _ in tasks.training_batches(7, 3)]
    second = [tokens for tokens, _ in tasks.training_batches(7, 3)]
    other = next(tasks.training_batches(8))[0]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other)


def test_the_mask_takes_bos_in_when_asked():
    (tokens, mask), (same, wider) = next(tasks.training_batches(7)), next(tasks.training_batches(7, include_bos=True))
    assert torch.equal(tokens, same)
    assert torch.equal(wider[:, 1:], mask[:, 1:])
    assert wider[:, 0].all()
    assert not mask[:, 0].any()


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="has the tasks greater_than.*'addition'"):
        tasks.evaluation_prompts("addition")
