"""Brackets of two kinds, nested: which one is to be closed next?"""

from __future__ import annotations

import random

from pullback.lens import Lens
from pullback.studies.behaviours.words import bos, enough, single
from pullback.studies.prompts import Question

QUESTION = (
    "Brackets of two kinds are opened and closed, and then one has to be closed: which? The margin is the logit of the "
    "closer that matches, less that of the other."
)
OPENERS, CLOSERS = "([", ")]"
LONGEST, DEEPEST = 15, 4


class Brackets:
    """Questions about brackets. A key is the closer that is asked for."""

    name, question = "brackets", QUESTION

    def __init__(self, lens: Lens) -> None:
        self.ids = enough(lens, single(lens, OPENERS + CLOSERS), 4, "brackets")
        self.start = bos(lens)

    def keys(self) -> list[str]:
        return list(CLOSERS)

    def draw(self, key: str, rng: random.Random) -> Question:
        """A random walk of brackets that leaves the key to be closed."""
        kind = CLOSERS.index(key)
        while True:
            text, stack = self._walk(rng)
            if stack and stack[-1] == kind:
                ids = (*self.start, *(self.ids[bracket] for bracket in text))
                return Question(ids, (self.ids[key],), (self.ids[CLOSERS[1 - kind]],), key)

    def _walk(self, rng: random.Random) -> tuple[str, list[int]]:
        """Brackets, and the kinds that are still open: up and down at random, then down some way."""
        text, stack = "", list[int]()
        for _ in range(rng.randint(2, LONGEST)):
            if not stack or (len(stack) < DEEPEST and rng.random() < 0.5):
                stack.append(rng.randrange(2))
                text += OPENERS[stack[-1]]
            else:
                text += CLOSERS[stack.pop()]
        for _ in range(rng.randrange(len(stack)) if stack else 0):
            text += CLOSERS[stack.pop()]
        return text, stack
