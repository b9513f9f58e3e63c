"""What is studied: prompts whose answer is known, and a margin that says how clearly the model gives it."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Protocol

from pullback.lens import Lens
from pullback.studies.behaviours.brackets import Brackets
from pullback.studies.behaviours.greater_than import GreaterThan, Years
from pullback.studies.behaviours.induction import Induction
from pullback.studies.behaviours.ioi import IndirectObjects
from pullback.studies.prompts import Question

__all__ = ["BEHAVIOURS", "Behaviour", "Brackets", "GreaterThan", "IndirectObjects", "Induction", "Years", "distinct"]


class Behaviour(Protocol):
    """Questions in the words of one model."""

    name: str
    question: str

    def keys(self) -> list[str]:
        """What can be asked for."""
        ...

    def draw(self, key: str, rng: random.Random) -> Question:
        """A question whose answer has that key."""
        ...


BEHAVIOURS = {made.name: made for made in (GreaterThan, IndirectObjects, Induction, Brackets)}


def distinct(
    behaviour: Behaviour, keys: Collection[str], rng: random.Random, taken: set[tuple[int, ...]], tries: int = 200
) -> list[Question]:
    """One question for each key, none of them in `taken`, to which they are added. Keys of which nothing new is found
    are left out."""
    found = []
    for key in keys:
        for _ in range(tries):
            question = behaviour.draw(key, rng)
            if question.ids not in taken:
                taken.add(question.ids)
                found.append(question)
                break
    return found


def open_behaviour(name: str, lens: Lens) -> Behaviour:
    """Raises ValueError for an unknown name, or a tokenizer that has not the words."""
    if name not in BEHAVIOURS:
        raise ValueError(f"study: there are the studies {', '.join(BEHAVIOURS)}; got '{name}'")
    return BEHAVIOURS[name](lens)
