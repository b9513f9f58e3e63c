"""What planted can be asked, as a behaviour."""

from __future__ import annotations

import random

import pullback as pb
from pullback.lens import Lens
from pullback.studies import Question


class Capitals:
    """A key is a state, prompts are its cities."""

    name, question = "capitals", "?"

    def __init__(self, lens: Lens) -> None:
        self.lens, self.truth = lens, pb.zoo.truth("planted")
        self.asked = [p for p in self.truth.prompts if p.relation == "capital" and p.subject != p.state]

    def keys(self) -> list[str]:
        return sorted({p.state for p in self.asked})

    def draw(self, key: str, rng: random.Random) -> Question:
        prompt = rng.choice([p for p in self.asked if p.state == key])
        other = rng.choice([p.answer for p in self.asked if p.state != key])
        right, wrong = (int(self.lens.to_tokens(word)[-1]) for word in (prompt.answer, other))
        return Question(tuple(self.lens.to_tokens(prompt.text).tolist()), (right,), (wrong,), key)
