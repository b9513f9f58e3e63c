"""Words of a behaviour as single tokens of whatever tokenizer a model has."""

from __future__ import annotations

import random
from collections.abc import Iterable

from pullback.lens import Lens


def listed(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def encoded(lens: Lens, text: str) -> list[int]:
    """Ids of a text, without BOS. Raises ValueError where there is no tokenizer, or it refuses the text."""
    tokenizer = getattr(lens.model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            f"study: {lens.model_name} has no tokenizer, and the prompts of a study are texts; set one with "
            "model.set_tokenizer, or study a model that brings one"
        )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def bos(lens: Lens) -> list[int]:
    """What the model puts before a text by its own default."""
    text = "the"
    whole, bare = lens.tokenize(text).tolist(), encoded(lens, text)
    return whole[: len(whole) - len(bare)]


def known(lens: Lens, text: str) -> list[int] | None:
    """Ids of a text, or None where the tokenizer refuses it or does not know a word of it."""
    try:
        ids = encoded(lens, text)
    except ValueError:  # a tokenizer of few words may refuse instead of saying "unknown"
        return None
    unknown = getattr(lens.model.tokenizer, "unk_token_id", None)
    one_for_both = unknown == getattr(lens.model.tokenizer, "bos_token_id", None)  # GPT-2's
    return None if unknown in ids and not one_for_both else ids


def single(lens: Lens, words: Iterable[str], before: str = " ") -> dict[str, int]:
    """{word: id} of the words that are one token behind `before`, and known."""
    found = {word: known(lens, before + word) for word in words}
    return {word: ids[0] for word, ids in found.items() if ids is not None and len(ids) == 1}


def enough(lens: Lens, found: dict[str, int], least: int, what: str) -> dict[str, int]:
    """Raises ValueError where the tokenizer has fewer than `least`."""
    if len(found) < least:
        raise ValueError(
            f"study: the tokenizer of {lens.model_name} has {len(found)} of the {what} of this study as single tokens; "
            f"it needs {least}"
        )
    return found


def shuffled(items: Iterable[str], rng: random.Random) -> list[str]:
    order = list(items)
    rng.shuffle(order)
    return order
