"""The words and prompts of the planted model: tiny-mix's facts and sentences, in a vocabulary of their own."""

from __future__ import annotations

from dataclasses import dataclass

from pullback.zoo.tinymix.tasks import capital_text, located_text, two_hop_text
from pullback.zoo.tinymix.vocab import BOS, CAPITALS, CITIES, PAD, STATES, UNK

# "a" stands in no prompt: TransformerLens encodes it to see whether the tokenizer prepends <bos>.
FUNCTION_WORDS = ("the", "capital", "of", "state", "containing", "is", "in", "a")
WORDS: tuple[str, ...] = (PAD, BOS, UNK, *FUNCTION_WORDS, *STATES, *CAPITALS, *CITIES)
IDS: dict[str, int] = {word: index for index, word in enumerate(WORDS)}
ANSWERS: tuple[str, ...] = (*CAPITALS, *STATES)


@dataclass(frozen=True)
class PlantedPrompt:
    """A prompt, its answer (one word), and how the model comes by it.

    kind: "two_hop" (city -> state -> capital), "located" (city -> state) or "capital" (state -> capital).
    subject: the word that names the state or a city of it.
    relation: "capital" or "in", the word that says what is asked.
    """

    kind: str
    text: str
    answer: str
    subject: str
    state: str
    relation: str

    @property
    def tokens(self) -> list[int]:
        """Token ids with <bos>."""
        return [IDS[BOS], *(IDS[word] for word in self.text.split())]

    def position(self, word: str) -> int:
        """Position of a word's only occurrence."""
        return self.tokens.index(IDS[word])

    @property
    def last(self) -> int:
        return len(self.tokens) - 1


def all_prompts() -> tuple[PlantedPrompt, ...]:
    """Every question the model can answer: 48 two-hop, 48 located, 12 capital."""
    two_hop = [
        PlantedPrompt("two_hop", two_hop_text(city), capital, city, state, "capital")
        for state, (capital, cities) in STATES.items()
        for city in cities
    ]
    located = [PlantedPrompt("located", located_text(p.subject), p.state, p.subject, p.state, "in") for p in two_hop]
    capitals = [
        PlantedPrompt("capital", capital_text(state), capital, state, state, "capital")
        for state, (capital, _) in STATES.items()
    ]
    return (*two_hop, *located, *capitals)
