"""planted: city -> state -> capital in weights written by formula, so that the true graph of every prompt is known.

Its transcoders are exact (see `pullback.zoo.exact`): a feature is a neuron, and what each does is stated in
`pullback.zoo.planted_weights`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pullback.zoo import planted_weights as pw
from pullback.zoo.exact import exact_transcoders
from pullback.zoo.planted_words import IDS, WORDS, PlantedPrompt, all_prompts
from pullback.zoo.tinymix.vocab import STATES

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from pullback.transcoders import TranscoderSet

Edge = tuple[str, str]
"""(source, target), as `Graph.node_ids` names them."""


def load(*, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> TransformerBridge:
    """The planted model with its tokenizer: 3 layers, no norm, learned positions, prompts of at most 12 tokens.

    The caller's random state is left as it was.
    Raises ValueError where this transformer_lens names the weights of a native model otherwise.
    """
    from pullback.zoo.planted_tokenizer import build_tokenizer

    return pw.plan().load("planted", build_tokenizer(pw.N_CTX), dtype=dtype, device=device)


def transcoders(*, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> TranscoderSet:
    return exact_transcoders(load(dtype=dtype, device=device))


def truth() -> PlantedTruth:
    """The true graph of every prompt, and what each feature and head is for."""
    return PlantedTruth()


@dataclass(frozen=True)
class PlantedTruth:
    """What is known of the planted model. Feature ids are those of its exact transcoders.

    words: the vocabulary in id order. states: {state: (capital, cities)}. prompts: every question it can answer.
    state_head, relation_head: (layer, head) of the two heads that move the state and the question to the end.
    """

    words: tuple[str, ...] = WORDS
    prompts: tuple[PlantedPrompt, ...] = all_prompts()
    state_head: tuple[int, int] = pw.STATE_HEAD
    relation_head: tuple[int, int] = pw.RELATION_HEAD

    @property
    def states(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        return dict(STATES)

    @property
    def state_features(self) -> dict[str, int]:
        """{state: feature of layer 0}, active at the word that names the state or a city of it."""
        return self._ids(0, "state")

    @property
    def relation_features(self) -> dict[str, int]:
        """{"capital" or "in": feature of layer 0}, active at that word."""
        return self._ids(0, "asks")

    @property
    def answer_features(self) -> dict[str, int]:
        """{capital or state: feature of layer 2}, active at the last position, where the answer is that word."""
        return self._ids(2, "answer")

    def idle(self, layer: int) -> list[int]:
        """Distractors whose ablation changes no logit: they write where no part of the circuit reads."""
        return sorted(self._ids(layer, "idle").values())

    def faint(self, layer: int) -> list[int]:
        """Distractors that write a few hundredths of what the circuit writes, to the circuit's own axes."""
        return sorted(self._ids(layer, "faint").values())

    def distractors(self, layer: int) -> list[int]:
        return sorted([*self.idle(layer), *self.faint(layer)])

    def prompt(self, text: str) -> PlantedPrompt:
        """The prompt of this text. Raises ValueError where the model has no true answer to it."""
        for prompt in self.prompts:
            if prompt.text == text:
                return prompt
        raise ValueError(f"planted has no truth for '{text}'; truth('planted').prompts lists what it can be asked")

    def features(self, prompt: PlantedPrompt | str) -> list[tuple[int, int, int]]:
        """(layer, position, feature) of the circuit: state, relation, answer."""
        p = self._as_prompt(prompt)
        return [
            (0, p.position(p.subject), self.state_features[p.state]),
            (0, p.position(p.relation), self.relation_features[p.relation]),
            (2, p.last, self.answer_features[p.answer]),
        ]

    def edges(self, prompt: PlantedPrompt | str) -> dict[Edge, float]:
        """The true edges with their weights, exact up to rounding: {(source, target): weight}.

        Words to state and relation, both to the answer's feature, that to the answer's logit (less the mean column
        of W_U, in which one word's share is 1 / d_vocab).
        """
        p = self._as_prompt(prompt)
        state, relation, answer = (f"{layer}_{feature}_{pos}" for layer, pos, feature in self.features(p))
        logit = f"{pw.N_LAYERS + 1}_{IDS[p.answer]}_{p.last}"
        return {
            (f"E_{IDS[p.subject]}_{p.position(p.subject)}", state): 1.0,
            (f"E_{IDS[p.relation]}_{p.position(p.relation)}", relation): 1.0,
            (state, answer): 1.0,
            (relation, answer): 1.0,
            (answer, logit): pw.ANSWER_LOGIT * (1 - 1 / len(WORDS)),
        }

    def _as_prompt(self, prompt: PlantedPrompt | str) -> PlantedPrompt:
        return self.prompt(prompt) if isinstance(prompt, str) else prompt

    def _ids(self, layer: int, kind: str) -> dict[str, int]:
        names = [n.name.split(" ", 1) for n in pw.neurons(layer)]
        return {name: i for i, (k, name) in enumerate(names) if k == kind}
