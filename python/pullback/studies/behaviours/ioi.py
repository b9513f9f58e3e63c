"""Indirect objects: of two names, the one that is not mentioned again (Wang et al. 2022)."""

from __future__ import annotations

import random

from pullback.lens import Lens
from pullback.studies.behaviours.words import bos, encoded, enough, known, listed, single
from pullback.studies.prompts import Question

QUESTION = (
    "Two people are named, one of them again, who gives something away: to whom? The margin is the logit of the "
    "name mentioned once, less that of the name mentioned twice."
)
NAMES = listed(
    "Mary John Alice Bob Emma James Sarah David Laura Peter Anna Mark Kate Paul Lucy Tom Jane Mike Susan Frank"
)
PLACES = listed("store park school beach office museum garden station")
OBJECTS = listed("drink letter book gift ring ball lamp map")
WORDINGS = (
    ("When {a} and {b} went to the {place}, {s} gave a {thing} to", str),
    ("when {a} and {b} went to the {place} {s} gave a {thing} to", str.lower),
    ("after {a} and {b} met at the {place} {s} sent a {thing} to", str.lower),
)


class IndirectObjects:
    """Questions about indirect objects in the words of one model. A key is the name that is asked for."""

    name, question = "ioi", QUESTION

    def __init__(self, lens: Lens) -> None:
        probe = {"a": "Mary", "b": "John", "s": "Mary", "place": "store", "thing": "drink"}
        fitting = [
            (text, case)
            for text, case in WORDINGS
            if known(lens, text.format(**{role: case(word) for role, word in probe.items()})) is not None
        ]
        if not fitting:
            raise ValueError(f"study ioi: {lens.model_name} does not know the words of its prompts")
        self.case = fitting[0][1]
        self.texts = [text for text, case in fitting if case is self.case]
        self.names = enough(lens, single(lens, map(self.case, NAMES)), 4, "names")
        self.lens, self.start = lens, bos(lens)

    def keys(self) -> list[str]:
        return list(self.names)

    def draw(self, key: str, rng: random.Random) -> Question:
        other = rng.choice([name for name in self.names if name != key])
        first, second = (key, other) if rng.random() < 0.5 else (other, key)
        where = {"place": self.case(rng.choice(PLACES)), "thing": self.case(rng.choice(OBJECTS))}
        text = rng.choice(self.texts).format(a=first, b=second, s=other, **where)
        ids = (*self.start, *encoded(self.lens, text))
        return Question(ids, (self.names[key],), (self.names[other],), key)
