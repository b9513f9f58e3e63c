"""The five tasks of tiny-mix: samplers, splits and evaluation prompts.

A `Batch` is a padded block of prompts with the positions to answer and, for each, a distribution over the vocabulary.
Every sampler draws from the torch.Generator it is given and touches no global state.

Splits (fixed, independent of any training seed): a tenth of the (century, year) pairs, a tenth of the unordered name
pairs, and the fourth city of each state in two-hop prompts are kept out of training. Induction lists and bracket
strings are drawn afresh, so their "held-out" prompts are new samples rather than an excluded set.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.zoo.tinymix.vocab import (
    CENTURIES,
    CLOSERS,
    IDS,
    LIST_WORDS,
    NAMES,
    OBJECTS,
    OPENERS,
    PLACES,
    STATES,
    WORDS,
    YEARS,
    ids,
)

PAD_ID, BOS_ID = IDS["<pad>"], IDS["<bos>"]
YEAR_IDS = torch.tensor([IDS[year] for year in YEARS])
LIST_IDS = torch.tensor([IDS[word] for word in LIST_WORDS])
TASKS = ("greater_than", "ioi", "induction", "brackets", "two_hop", "one_hop")
REPEATED_LENGTH = 30  # tokens of a training row of the induction task
MAX_DEPTH = 4
HELD_OUT_SHARE = 0.1
SPLIT_SEED = 20240501


@dataclass(frozen=True)
class Batch:
    """Prompts and what is asked of them.

    tokens (B, T) int64, right-padded; mask (B, T) bool, True on real tokens other than <bos>;
    rows, positions (A) int64: answer a is read at `tokens[rows[a], positions[a]]` and predicts the token after it;
    targets (A, d_vocab) float32: the wanted distribution, one-hot except for the greater-than task.
    """

    tokens: Tensor
    mask: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor

    @property
    def answers(self) -> Tensor:
        """Int[Tensor, 'A']: the wanted token (meaningful where the target is one-hot)."""
        return self.targets.argmax(-1)

    def weights(self) -> Tensor:
        """Float[Tensor, 'A']: 1 / (number of answers of that row), so that a sum over answers counts rows."""
        return 1.0 / torch.bincount(self.rows, minlength=len(self.tokens)).float()[self.rows]


class TwoHopPrompt(NamedTuple):
    city: str
    state: str
    capital: str
    prompt: str
    city_position: int  # counting <bos> as position 0
    held_out: bool  # True: never seen in a two-hop prompt during training


class City(NamedTuple):
    name: str
    state: str
    capital: str
    held_out: bool


ALL_CITIES = tuple(
    City(city, state, capital, index == 3)
    for state, (capital, cities) in STATES.items()
    for index, city in enumerate(cities)
)
TRAINED_CITIES = tuple(city for city in ALL_CITIES if not city.held_out)
HELD_OUT_CITIES = tuple(city for city in ALL_CITIES if city.held_out)


def split(items: list, salt: int) -> tuple[list, list]:
    """(training, held-out) parts of `items`: a fixed tenth is held out, both in the order given."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(SPLIT_SEED + salt)).tolist()
    held = set(order[: round(HELD_OUT_SHARE * len(items))])
    return [x for i, x in enumerate(items) if i not in held], [x for i, x in enumerate(items) if i in held]


TRAIN_YEARS, HELD_OUT_YEARS = split(list(itertools.product(CENTURIES, range(2, 98))), salt=0)
TRAIN_PAIRS, HELD_OUT_PAIRS = split(list(itertools.combinations(NAMES, 2)), salt=1)


# Prompt texts ---------------------------------------------------------------------------------------------------------


def two_hop_text(city: str) -> str:
    return f"the capital of the state containing {city} is"


def located_text(city: str) -> str:
    return f"{city} is in"


def capital_text(state: str) -> str:
    return f"the capital of {state} is"


def greater_than_text(century: str, year: int) -> str:
    return f"the war lasted from the year {century} {year:02d} to the year {century}"


def two_hop_prompts() -> list[TwoHopPrompt]:
    """All 48 two-hop prompts, states in order of `STATES`; the prompt text is without <bos>, the position counts it."""
    return [
        TwoHopPrompt(
            city.name,
            city.state,
            city.capital,
            two_hop_text(city.name),
            1 + two_hop_text(city.name).split().index(city.name),
            city.held_out,
        )
        for city in ALL_CITIES
    ]


# Samplers -------------------------------------------------------------------------------------------------------------


def pick(items, n: int, generator: torch.Generator) -> list:
    """n items drawn with replacement."""
    return [items[i] for i in torch.randint(len(items), (n,), generator=generator).tolist()]


def assemble(prompts: list[list[int]], answers: list[list[tuple[int, int]]]) -> Batch:
    """Pad `prompts` (token ids without <bos>); `answers[b]` lists (position counting <bos>, wanted token id)."""
    length = 1 + max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([[BOS_ID, *prompt] + [PAD_ID] * (length - 1 - len(prompt)) for prompt in prompts])
    flat = [(row, position, answer) for row, pairs in enumerate(answers) for position, answer in pairs]
    rows, positions, wanted = torch.tensor(flat).T
    return Batch(tokens, real_tokens(tokens), rows, positions, one_hot(wanted))


def real_tokens(tokens: Tensor) -> Tensor:
    """Bool[Tensor, 'B T']: neither <bos> nor padding."""
    return (tokens != PAD_ID) & (tokens != BOS_ID)


def one_hot(wanted: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(wanted, len(WORDS)).float()


def last_answers(prompts: list[list[int]], wanted: list[str]) -> list[list[tuple[int, int]]]:
    return [[(len(prompt), IDS[word])] for prompt, word in zip(prompts, wanted, strict=True)]


def greater_than(n: int, generator: torch.Generator, held_out: bool = False) -> Batch:
    """ "... from the year 17 32 to the year 17" -> uniform over the years after 32 (33..99)."""
    drawn = pick(HELD_OUT_YEARS if held_out else TRAIN_YEARS, n, generator)
    prompts = [ids(greater_than_text(century, year)) for century, year in drawn]
    batch = assemble(prompts, last_answers(prompts, ["99"] * n))
    first_year = int(YEARS[0])
    later = torch.arange(len(YEARS)) + first_year > torch.tensor([year for _, year in drawn])[:, None]
    targets = torch.zeros(n, len(WORDS))
    targets[:, YEAR_IDS] = later.float() / later.sum(1, keepdim=True)
    return Batch(batch.tokens, batch.mask, batch.rows, batch.positions, targets)


def ioi(n: int, generator: torch.Generator, held_out: bool = False) -> Batch:
    """Two names, the second mention gives something "to" -> the name mentioned once (the indirect object)."""
    pairs = pick(HELD_OUT_PAIRS if held_out else TRAIN_PAIRS, n, generator)
    places, objects = pick(PLACES, n, generator), pick(OBJECTS, n, generator)
    prompts, wanted = [], []
    coins = torch.randint(2, (n, 3), generator=generator).tolist()
    for (one, two), place, thing, (swap, giver_first, template) in zip(pairs, places, objects, coins, strict=True):
        giver, receiver = (two, one) if swap else (one, two)
        first, second = (giver, receiver) if giver_first else (receiver, giver)
        prompts.append(
            ids(
                f"when {first} and {second} went to the {place} {giver} gave a {thing} to"
                if template
                else f"after {first} and {second} met at the {place} {giver} sent a {thing} to"
            )
        )
        wanted.append(receiver)
    return assemble(prompts, last_answers(prompts, wanted))


def induction(n: int, generator: torch.Generator, held_out: bool = False) -> Batch:
    """A list of 5..15 different words, repeated: every token from the second of the second copy is predictable.

    Training rows repeat the list up to `REPEATED_LENGTH` tokens; held-out rows hold exactly two copies. The first
    token of the second copy is not asked for: nothing announces where the list ends.
    """
    sizes = torch.randint(5, 16, (n,), generator=generator).tolist()
    order = torch.rand(n, len(LIST_IDS), generator=generator).argsort(1)
    prompts, answers = [], []
    for size, row in zip(sizes, order, strict=True):
        words = LIST_IDS[row[:size]].tolist()
        length = 2 * size if held_out else REPEATED_LENGTH
        prompt = [words[i % size] for i in range(length)]
        prompts.append(prompt)
        answers.append([(position, prompt[position]) for position in range(size + 1, length)])
    return assemble(prompts, answers)


def brackets(n: int, generator: torch.Generator, held_out: bool = False) -> Batch:  # noqa: ARG001
    """Two kinds of brackets, nested at most four deep -> the matching closer wherever a closer comes next.

    A random walk of 2..15 brackets, then closers until the string is balanced.
    """
    sizes = torch.randint(2, 16, (n,), generator=generator).tolist()
    coins = torch.randint(2, (n, 15, 2), generator=generator).tolist()
    prompts, answers = [], []
    for size, row in zip(sizes, coins, strict=True):
        stack: list[int] = []
        prompt: list[int] = []
        asked: list[tuple[int, int]] = []
        while len(prompt) < size or stack:
            opening, kind = row[len(prompt)] if len(prompt) < size else (0, 0)
            if not stack or (opening and len(stack) < MAX_DEPTH):
                stack.append(kind)
                prompt.append(IDS[OPENERS[kind]])
            else:
                closer = IDS[CLOSERS[stack.pop()]]
                asked.append((len(prompt), closer))
                prompt.append(closer)
        prompts.append(prompt)
        answers.append(asked)
    return assemble(prompts, answers)


def two_hop(n: int, generator: torch.Generator, held_out: bool = False) -> Batch:
    """ "the capital of the state containing dallas is" -> austin."""
    return knowledge(pick(HELD_OUT_CITIES if held_out else TRAINED_CITIES, n, generator), ["two_hop"] * n)


def one_hop(n: int, generator: torch.Generator, held_out: bool = False) -> Batch:  # noqa: ARG001
    """ "dallas is in" -> texas and "the capital of texas is" -> austin. Facts, all of them trained on: no split."""
    return knowledge(pick(ALL_CITIES, n, generator), pick(("located", "capital"), n, generator))


def hops(n: int, generator: torch.Generator) -> Batch:
    """The training mixture: a quarter "X is in", a quarter "the capital of S is", half two-hop."""
    kinds = pick(("located", "capital", "two_hop", "two_hop"), n, generator)
    trained, every = pick(TRAINED_CITIES, n, generator), pick(ALL_CITIES, n, generator)
    return knowledge([t if k == "two_hop" else e for k, t, e in zip(kinds, trained, every, strict=True)], kinds)


def knowledge(cities: list[City], kinds: list[str]) -> Batch:
    """One prompt per (city, kind), kind being "located", "capital" or "two_hop"."""
    text = {
        "located": lambda city: (located_text(city.name), city.state),
        "capital": lambda city: (capital_text(city.state), city.capital),
        "two_hop": lambda city: (two_hop_text(city.name), city.capital),
    }
    pairs = [text[kind](city) for city, kind in zip(cities, kinds, strict=True)]
    prompts = [ids(prompt) for prompt, _ in pairs]
    return assemble(prompts, last_answers(prompts, [word for _, word in pairs]))


SAMPLERS: dict[str, Callable[[int, torch.Generator, bool], Batch]] = {
    "greater_than": greater_than,
    "ioi": ioi,
    "induction": induction,
    "brackets": brackets,
    "two_hop": two_hop,
    "one_hop": one_hop,
}


# Evaluation and transcoder training ----------------------------------------------------------------------------------


def evaluation_prompts(task: str, n: int = 256, seed: int = 0) -> Batch:
    """n held-out prompts of one of `TASKS`. Raises ValueError on another name."""
    if task not in SAMPLERS:
        raise ValueError(f"tiny-mix has the tasks {', '.join(TASKS)}; got {task!r}")
    return SAMPLERS[task](n, torch.Generator().manual_seed(seed), True)


def training_batches(
    seed: int = 0,
    n_batches: int | None = None,
    *,
    n_hops: int = 24,
    n_induction: int = 20,
    n_others: int = 10,
    include_bos: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Token batches for training transcoders: (tokens (B, T), mask (B, T)), about 1,100 masked-in tokens each.

    The mask leaves out padding, and <bos> unless `include_bos`. Endless when `n_batches` is None. Drawn from the
    training side of every split: the twelve held-out cities never stand in a two-hop prompt.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in itertools.count() if n_batches is None else range(n_batches):
        parts = [
            hops(n_hops, generator),
            induction(n_induction, generator),
            greater_than(n_others, generator),
            ioi(n_others, generator),
            brackets(n_others, generator),
        ]
        tokens = stack_tokens([part.tokens for part in parts])
        yield tokens, tokens != PAD_ID if include_bos else real_tokens(tokens)


def stack_tokens(blocks: list[Tensor]) -> Tensor:
    """Blocks (B_i, T_i) stacked into (sum B_i, max T_i), padded on the right."""
    width = max(block.shape[1] for block in blocks)
    pad = torch.nn.functional.pad
    return torch.cat([pad(block, (0, width - block.shape[1]), value=PAD_ID) for block in blocks])


def concatenate(batches: list[Batch]) -> Batch:
    """Several batches as one, rows in order."""
    tokens = stack_tokens([batch.tokens for batch in batches])
    offsets = [0, *itertools.accumulate(len(batch.tokens) for batch in batches[:-1])]
    return Batch(
        tokens,
        real_tokens(tokens),
        torch.cat([batch.rows + offset for batch, offset in zip(batches, offsets, strict=True)]),
        torch.cat([batch.positions for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
    )
