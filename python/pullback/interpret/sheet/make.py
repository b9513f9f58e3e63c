"""The sheet: random live features of two dictionaries, shuffled, on one page, and a key that says which is which."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pullback._util.atomic import atomic_save
from pullback.interpret.dashboard.live import corpus_live, drawn
from pullback.interpret.dashboard.seen import QUANTILE, Examples, seen_in
from pullback.interpret.features.reading import Batches
from pullback.lens import as_lens
from pullback.training.source import Tokens
from pullback.transcoders import LayeredDictionary
from pullback.viz.sheet import sheet_page

KEY = "pullback-sheet-key"
Item = dict[str, Any]


def make_sheet(
    model: Any,
    arms: Mapping[str, LayeredDictionary],
    layer: int,
    tokens: Tokens,
    page: str | os.PathLike[str],
    key: str | os.PathLike[str],
    *,
    n: int = 50,
    min_density: float = 1e-4,
    n_top: int = 10,
    n_bands: int = 3,
    n_per_band: int = 3,
    window: tuple[int, int] = (16, 8),
    mask: Tensor | None = None,
    context_size: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    strict: bool = True,
    verbose: bool = False,
) -> dict[str, Any]:
    """Write a page on which somebody rates features, and the key to it. Hand out the page and keep the key.

    The page shows contexts only, with activations as shares of the feature's largest: scale, density, feature numbers
    and logits could tell the arms apart. Ratings stay in the reader's browser until they are saved as a file, for
    `score_sheet`.

    Args:
        model: a TransformerLens model, or a `Lens` on one.
        arms: {name: dictionary} of two, transcoders or autoencoders with features of `layer`.
        tokens, mask, context_size, batch_size: the corpus, as for `write_feature_pack`; read twice for each arm.
        page, key: the files, a .html and a .json.
        n: features of each arm, by lot among those that are active on more than `min_density` of tokens.
        n_top: contexts in which each is strongest.
        n_bands, n_per_band: further contexts by strength, in so many groups of equally many.
        window: tokens shown on the left and right.
        seed: of all lots. It is in the key, and not on the page.

    Returns the key.

    Raises:
        ValueError: not two arms, one file for both, or fewer live features than n.
    """
    if len(arms) != 2:
        raise ValueError(f"make_sheet: compares two arms, got {list(arms)}")
    if os.path.abspath(page) == os.path.abspath(key):
        raise ValueError("make_sheet: the key is a file of its own, or the page would not be blind")
    lens = as_lens(model)
    corpus = Batches.of(lens, tokens, mask=mask, context_size=context_size, batch_size=batch_size)
    wanted = Examples(n_top, QUANTILE, n_bands, n_per_band, window)
    cards: list[Item] = []
    origins: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    for name, given in arms.items():
        sets = lens.fitted(given, strict=strict)
        if layer not in sets:
            raise ValueError(f"make_sheet: {name!r} has no features of layer {layer}; it has layers {sets.layers}")
        live = corpus_live(lens, sets, layer, corpus, min_density)
        ids = torch.tensor(drawn(live, n, seed))
        n_tokens, seen = seen_in(lens, sets, layer, ids, corpus, wanted, n_neighbours=1, seed=seed, verbose=verbose)
        cards += [_anonymous(card) for card in seen]
        origins += [{"arm": name, "layer": layer, "feature": feature} for feature in ids.tolist()]
        about[name] = {"live": len(live), "tokens": n_tokens, "hooks": [sets.hook_in(layer), sets.hook_out(layer)]}
    order = torch.randperm(len(cards), generator=torch.Generator().manual_seed(seed)).tolist()
    items = [cards[i] for i in order]
    sheet = hashlib.sha256(json.dumps(items).encode()).hexdigest()[:12]
    answer = {
        "format": KEY,
        "sheet": sheet,
        "model": lens.model_name,
        "settings": {"n": n, "min_density": min_density, "seed": seed},
        "arms": about,
        "items": [origins[i] for i in order],
    }
    # The key first: a page without one could never be scored.
    atomic_save(key, json.dumps(answer, indent=1) + "\n")
    atomic_save(page, sheet_page({"sheet": sheet, "items": items}))
    return answer


def _anonymous(card: Item) -> Item:
    """Contexts with activations as shares of the largest."""
    groups = [card["examples"], *(group["examples"] for group in card["sampled"])]
    largest = max((value for group in groups for example in group for value in example["activations"]), default=0.0)

    def shares(examples: list[Item]) -> list[Item]:
        return [
            example | {"activations": [round(value / largest, 3) for value in example["activations"]]}
            for example in examples
        ]

    sampled = [
        {"name": f"Weaker, group {i + 1}", "examples": shares(group["examples"])}
        for i, group in enumerate(card["sampled"])
    ]
    return {"examples": shares(card["examples"]), "sampled": sampled}
