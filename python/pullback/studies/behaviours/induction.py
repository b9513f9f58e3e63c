"""Induction: a list of words, begun again, goes on as it did before (Elhage et al. 2021, Olsson et al. 2022)."""

from __future__ import annotations

import random

from pullback.lens import Lens
from pullback.studies.behaviours.words import bos, enough, listed, shuffled, single
from pullback.studies.prompts import Question

QUESTION = (
    "A list of different words is said a second time and breaks off: how does it go on? The margin is the logit of the "
    "word that came next the first time, less the mean logit of the list's other words."
)
WORDS = listed(
    "apple river stone cloud tiger violin candle window forest copper silver bridge carpet dragon engine feather "
    "guitar hammer island jacket kettle ladder magnet needle orange pepper quartz rabbit saddle tunnel velvet walnut "
    "anchor basket cactus dolphin eagle falcon ginger harbor insect jungle kitten lemon marble nectar oyster parrot "
    "ribbon spider thunder turtle urchin valley whistle yogurt zebra acorn beetle clover desert ember fossil glacier"
)
SHORTEST, LONGEST = 5, 15


class Induction:
    """Questions about repeated lists. A key is the word that is asked for."""

    name, question = "induction", QUESTION

    def __init__(self, lens: Lens) -> None:
        self.words = enough(lens, single(lens, WORDS), LONGEST + 1, "list words")
        self.start = bos(lens)

    def keys(self) -> list[str]:
        return list(self.words)

    def draw(self, key: str, rng: random.Random) -> Question:
        size = rng.randint(SHORTEST, LONGEST)
        chosen = shuffled((word for word in self.words if word != key), rng)[: size - 1]
        place = rng.randint(1, size - 1)
        chosen.insert(place, key)
        ids = [self.words[word] for word in [*chosen, *chosen[:place]]]
        wrong = tuple(self.words[word] for word in chosen if word != key)
        return Question((*self.start, *ids), (self.words[key],), wrong, key)
