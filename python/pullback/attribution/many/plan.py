"""Which prompts are explained together, and what their files are called."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pullback._util.atomic import atomic_save
from pullback.attribution.linear.prompt_by_prompt import fit_a_cache
from pullback.attribution.settings import Settings
from pullback.lens import Lens
from pullback.lens.fingerprint import fingerprint, same_weight
from pullback.lens.tokens import Prompt
from pullback.transcoders import LayeredDictionary

# Of all prompts of a batch, on a CPU: more of them leave its cache.
TOKENS_AT_ONCE = 384
PROMPTS_AT_ONCE = 32
PROMPT_BY_PROMPT = 2  # times as many where a sweep takes one after the other
ON_DEVICE = 8  # ... and on a GPU
RUN = "run.json"


@dataclass(frozen=True)
class Numbered:
    """A prompt with its place in the list; without tokens, `why` says what is wrong with it."""

    number: int
    text: str
    file: str
    tokens: list[int]
    why: str = ""


def numbered(lens: Lens, prompts: Sequence[Prompt], shard_id: int, num_shards: int) -> list[Numbered]:
    """The prompts of one shard, read by the model. Raises ValueError where there is none in any."""
    if not prompts:
        raise ValueError("attribute_many: there are no prompts")
    own = {number: prompts[number] for number in range(shard_id, len(prompts), num_shards)}
    read = {number: _tokens_or_why(lens, prompt) for number, prompt in own.items()}
    met = sorted({t for number, (tokens, _) in read.items() if not isinstance(own[number], str) for t in tokens})
    words = dict(zip(met, lens.to_str_tokens(torch.tensor(met)), strict=True))
    return [_named(number, own[number], tokens, why, words) for number, (tokens, why) in read.items()]


def _tokens_or_why(lens: Lens, prompt: Prompt) -> tuple[list[int], str]:
    """A prompt's tokens, or none and the sentence that says what is wrong with it."""
    try:
        return lens.to_tokens(prompt).tolist(), ""
    except ValueError as error:
        return [], str(error)


def _named(number: int, prompt: Prompt, tokens: list[int], why: str, words: Mapping[int, str]) -> Numbered:
    text = prompt if isinstance(prompt, str) else ""
    if why:
        return Numbered(number, text or repr(prompt)[:200], "", [], why)
    digest = hashlib.sha256(json.dumps([text, tokens]).encode()).hexdigest()[:12]
    shown = text or "".join(words[t] for t in tokens)
    return Numbered(number, shown, f"{number:06d}-{digest}.safetensors", tokens)


def batches(prompts: Sequence[Numbered], at_once: int | None, lens: Lens) -> list[list[Numbered]]:
    """Prompts of one length, as many as are explained together.

    They follow from the list alone and not from what is done already, so a resumed run sums in the same order.
    """
    by_length: dict[int, list[Numbered]] = defaultdict(list)
    for prompt in prompts:
        by_length[len(prompt.tokens)].append(prompt)
    found: list[list[Numbered]] = []
    for length, same in sorted(by_length.items()):
        size = at_once or _at_once(length, lens)
        found += [same[start : start + size] for start in range(0, len(same), size)]
    return found


def _at_once(length: int, lens: Lens) -> int:
    small = fit_a_cache(lens.n_heads * lens.d_head * lens.d_model, length)
    times = ON_DEVICE if lens.device.type != "cpu" else PROMPT_BY_PROMPT if small else 1
    return max(1, min(PROMPTS_AT_ONCE * times, TOKENS_AT_ONCE * times // length))


def claim(
    folder: Path, lens: Lens, sets: LayeredDictionary, saes: LayeredDictionary | None, settings: Mapping[str, Any]
) -> None:
    """Write down what the graphs of a folder have in common. Raises ValueError where they have something else."""
    weights = {f"model {i}": lens.fingerprint(i) or "" for i in range(lens.n_layers)}
    named = [("", sets)] if saes is None else [("", sets), ("attention ", saes)]
    for name, dictionaries in named:
        for i in dictionaries.layers:
            weights[f"{name}W_enc {i}"] = fingerprint(dictionaries[i].W_enc)
            weights[f"{name}W_dec {i}"] = fingerprint(dictionaries.decoder(i, i))
    path = folder / RUN
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"attribute_many: graphs go into a folder, and {folder} is a file")
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        atomic_save(path, json.dumps({"weights": weights, "settings": dict(settings)}, indent=1))
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    differ = {name: (begun["settings"].get(name), now) for name, now in settings.items()}
    told = [f"{name}={then!r}, now {now!r}" for name, (then, now) in differ.items() if then != now]
    told += [
        f"other weights ({name})"
        for name, ours in weights.items()
        if not (ours == begun["weights"].get(name) or same_weight(ours, begun["weights"].get(name, "")))
    ]
    if told or set(weights) != set(begun["weights"]):
        raise ValueError(
            f"attribute_many: {folder} was begun with {'; '.join(told) or 'other layers'}: give out_dir another folder"
        )


def described(settings: Settings, more: Mapping[str, Any]) -> dict[str, Any]:
    """What changes graphs, in words that JSON has."""
    named = {name: value for name, value in vars(settings).items() if name != "verbose"} | dict(more)
    return {
        name: value if isinstance(value, int | float | str | None) else repr(value) for name, value in named.items()
    }
