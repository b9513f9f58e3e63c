"""Greater-than: a war that began in 1732 ends in a later year (Hanna et al. 2023)."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.lens import Lens
from pullback.studies.behaviours.words import bos, encoded, known, single
from pullback.studies.prompts import Question

QUESTION = (
    "A war lasts from one year of a century to another of the same century: which? The margin is the mean logit of the "
    "later two-digit years, less that of the years up to the first."
)
PUBLISHED = ("The war lasted from", " to")
LOWER_CASE = ("the war lasted from the year", " to the year")  # a tokenizer that knows no capitals is tiny-mix's
CENTURIES = tuple(str(c) for c in range(11, 20))
FEWEST_YEARS = 20


@dataclass(frozen=True, eq=False)
class Years:
    """One prompt for each first year: tokens (n, T), and the ids of the two-digit years (Y) in ascending order, of
    which `first` (n) says where each prompt's own stands."""

    tokens: Tensor
    ids: Tensor
    first: Tensor
    names: list[str]

    def difference(self, logits: Tensor) -> Tensor:
        """Probability of the years after the first, less that of the others, among two-digit years alone: logits
        (n, V) -> (n)."""
        p = logits[:, self.ids.to(logits.device)].softmax(-1)
        later = torch.arange(len(self.ids)) > self.first[:, None]
        return torch.where(later.to(p.device), p, -p).sum(-1)


class GreaterThan:
    """Questions about years. A key is the first year, in two digits."""

    name, question = "greater-than", QUESTION

    def __init__(self, lens: Lens) -> None:
        start = bos(lens)
        centuries = single(lens, CENTURIES)
        self.years = single(lens, [f"{y:02d}" for y in range(100)], before="")
        capitals = known(lens, PUBLISHED[0]) != known(lens, PUBLISHED[0].lower())
        before, between = PUBLISHED if capitals else LOWER_CASE
        fits = known(lens, before + between) is not None
        if len(self.years) < FEWEST_YEARS or "17" not in centuries or not fits:
            raise ValueError(
                f"study greater-than: it needs a tokenizer that splits 1732 into 17 and 32, one token for each century "
                f"and each two-digit year; that of {lens.model_name} has {len(self.years)} such years and the "
                f"centuries {', '.join(centuries) or 'none'}"
            )
        self.centuries = centuries
        self.before, self.between = [*start, *encoded(lens, before)], encoded(lens, between)

    def keys(self) -> list[str]:
        """Years with at least one before and one after them."""
        return list(self.years)[1:-1]

    def draw(self, key: str, rng: random.Random) -> Question:
        names = list(self.years)
        after = names.index(key) + 1
        right, wrong = (tuple(self.years[y] for y in part) for part in (names[after:], names[:after]))
        return Question(self._ids(rng.choice(list(self.centuries)), key), right, wrong, key)

    def prompts(self, century: str = "17") -> Years:
        """One prompt for each two-digit year of a century."""
        names = list(self.years)
        return Years(
            torch.tensor([self._ids(century, y) for y in names]),
            torch.tensor(list(self.years.values())),
            torch.arange(len(names)),
            names,
        )

    def _ids(self, century: str, year: str) -> tuple[int, ...]:
        c = self.centuries[century]
        return (*self.before, c, self.years[year], *self.between, c)
