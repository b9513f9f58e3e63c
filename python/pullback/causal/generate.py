"""Text written under intervention, token by token."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.causal.intervene import held, run_from
from pullback.causal.places import Intervention, anchored, fitted, parsed, placed
from pullback.lens import Lens, as_lens, trace
from pullback.lens.tokens import continuation
from pullback.transcoders import LayeredDictionary


@dataclass(frozen=True, eq=False)
class Generated:
    """tokens (T + n): the prompt and n new tokens; logits (n, V): what each new token was chosen from; text: of the new
    tokens."""

    tokens: Tensor
    logits: Tensor
    text: str

    def __repr__(self) -> str:
        return f"Generated({self.text!r}, {len(self.logits)} tokens after {len(self.tokens) - len(self.logits)})"

    @property
    def new_tokens(self) -> Tensor:
        return self.tokens[len(self.tokens) - len(self.logits) :]


def generate(
    model: Any,
    sets: LayeredDictionary,
    prompt: str | Sequence[int] | Tensor,
    interventions: Sequence[Intervention] = (),
    *,
    max_new_tokens: int = 10,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_at_eos: bool = True,
    eos_token_id: int | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    freeze: str | None = "attention",
    constrained_layers: Iterable[int] | None = None,
    attention_saes: LayeredDictionary | None = None,
    strict: bool = True,
) -> Generated:
    """Continue a prompt with features set as `intervene` sets them.

    Every new token is read off a pass over the whole text so far, so each equals what `intervene` says on that text,
    whatever is frozen: what is held, and what a supernode's factor multiplies, is the unchanged run of that same text.
    Nothing is cached between tokens, which costs time on long texts.

    Args:
        interventions: of `intervene`. Positions count in the prompt; a slice without an end, or with an end behind the
            prompt, also covers new tokens.
        do_sample: draw from the distribution; otherwise take the likeliest token.
        temperature, top_k, top_p: of the distribution drawn from, applied in this order.
        stop_at_eos, eos_token_id: end with this token (default: the tokenizer's, where there is one).
        seed, generator: of the draws; without either, the default generator of torch.
        freeze, constrained_layers, attention_saes, strict: of `intervene`.

    Raises:
        ValueError: as `intervene`, for sampling arguments out of range or without do_sample, and where the text would
            outgrow the context.
    """
    lens = as_lens(model)
    tokens = lens.to_tokens(prompt)
    dictionaries = fitted(lens, sets, attention_saes, strict=strict)
    hold = held(lens, dictionaries, freeze, constrained_layers)
    settings = anchored(parsed(interventions), len(tokens))
    placed(dictionaries, len(tokens), settings, must_cover=False)  # what cannot be set is said before anything runs
    if max_new_tokens < 1 or len(tokens) + max_new_tokens - 1 > lens.n_ctx:
        raise ValueError(
            f"generate: max_new_tokens must be in 1..{lens.n_ctx - len(tokens) + 1} after {len(tokens)} tokens (the "
            f"context of {lens.model_name} is {lens.n_ctx}), got {max_new_tokens}"
        )
    choose = _Choice(do_sample, temperature, top_k, top_p, _generator(lens, seed, generator))
    end = _eos(lens, eos_token_id) if stop_at_eos else None
    seen: list[Tensor] = []
    while len(seen) < max_new_tokens:
        wanted = placed(dictionaries, len(tokens), settings, must_cover=False)
        seen.append(run_from(lens, dictionaries, trace(lens, tokens), wanted, hold).logits[-1])
        tokens = torch.cat([tokens, choose(seen[-1])])
        if int(tokens[-1]) == end:
            break
    return Generated(tokens, torch.stack(seen), continuation(lens, tokens, len(tokens) - len(seen)))


@dataclass(frozen=True)
class _Choice:
    """How the next token is taken from logits."""

    do_sample: bool
    temperature: float
    top_k: int | None
    top_p: float | None
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"generate: temperature must be above 0 (do_sample=False is greedy), got {self.temperature}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"generate: top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"generate: top_p must lie in (0, 1], got {self.top_p}")
        given = {
            "temperature": self.temperature != 1,
            "top_k": self.top_k is not None,
            "top_p": self.top_p is not None,
            "seed or generator": self.generator is not None,
        }
        if not self.do_sample and any(given.values()):
            named = ", ".join(name for name, has in given.items() if has)
            raise ValueError(
                f"generate: {named} would change nothing: the likeliest token is taken; do_sample=True draws"
            )

    def __call__(self, logits: Tensor) -> Tensor:
        """(V) -> (1)"""
        if not self.do_sample:
            return logits.argmax(-1, keepdim=True)
        return torch.multinomial(self.distribution(logits), 1, generator=self.generator)

    def distribution(self, logits: Tensor) -> Tensor:
        """(V) -> (V): temperature; then the top_k likeliest; of those, the fewest that reach top_p."""
        ranked, ids = (logits.float() / self.temperature).sort(descending=True, stable=True)
        p = torch.softmax(ranked[: self.top_k], -1)
        if self.top_p is not None:
            before = p.cumsum(-1) - p
            p = p * (before < self.top_p)
        return torch.zeros_like(ranked).index_copy_(0, ids[: len(p)], p / p.sum())


def _generator(lens: Lens, seed: int | None, generator: torch.Generator | None) -> torch.Generator | None:
    if seed is None:
        return generator
    if generator is not None:
        raise ValueError("generate: give a seed or a generator, not both")
    return torch.Generator(device=lens.device).manual_seed(operator.index(seed))


def _eos(lens: Lens, given: int | None) -> int | None:
    return given if given is not None else getattr(getattr(lens.model, "tokenizer", None), "eos_token_id", None)
