"""Dashboards of features: what a corpus, the weights and prompts of one's own show of each."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pullback._util.atomic import atomic_save
from pullback.interpret.dashboard.live import corpus_live, drawn, pack_live
from pullback.interpret.dashboard.prompts import on_prompt
from pullback.interpret.dashboard.seen import BANDS, Examples, seen_in
from pullback.interpret.dashboard.wired import weight_parts
from pullback.interpret.features.pack import FeaturePack
from pullback.interpret.features.reading import Batches
from pullback.lens import as_lens
from pullback.lens.tokens import Prompt
from pullback.training.source import Tokens
from pullback.transcoders import LayeredDictionary
from pullback.viz.dashboard import dashboard_page, notebook_dashboard

FORMAT = 1
Part = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Dashboard:
    """Features with all that is known of each, as plain values (`viz.DASHBOARD_SCHEMA`). Draws itself in a notebook."""

    content: dict[str, Any]

    @property
    def features(self) -> list[tuple[int, int]]:
        """(layer, feature), in order."""
        return [(part["layer"], part["feature"]) for part in self.content["features"]]

    def __getitem__(self, feature: int) -> Part:
        """What is known of a feature. Raises KeyError for one that is not on the dashboard."""
        for part in self.content["features"]:
            if part["feature"] == feature:
                return part
        raise KeyError(f"feature {feature} is not on this dashboard, which has {[f for _, f in self.features]}")

    def __repr__(self) -> str:
        blind = self.content["blind"]
        state = "" if blind is None else ", revealed" if blind["revealed"] else ", blind"
        return f"Dashboard({len(self.features)} features of layer {self.content['layer']}{state})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a copy."""
        return json.loads(json.dumps(self.content))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        atomic_save(path, json.dumps(self.content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """One self-contained page; written to `path` if given, returned as text."""
        page = dashboard_page(self.content)
        if path is not None:
            atomic_save(path, page)
        return page

    def _repr_html_(self) -> str:
        return notebook_dashboard(self.content)


def dashboard(
    model: Any,
    sets: LayeredDictionary,
    layer: int,
    features: int | Sequence[int] | Tensor | None = None,
    tokens: Tokens | None = None,
    *,
    pack: FeaturePack | str | os.PathLike[str] | None = None,
    prompts: Sequence[Prompt] = (),
    n_random: int = 10,
    min_density: float = 1e-4,
    bands: str = "uniform",
    n_bands: int = 5,
    n_per_band: int = 5,
    n_top: int = 20,
    window: tuple[int, int] = (16, 8),
    k: int = 10,
    mask: Tensor | None = None,
    context_size: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    strict: bool = True,
    verbose: bool = False,
) -> Dashboard:
    """Show features of a layer: the contexts they are strongest in, examples at every strength, histogram and density,
    what is active beside them, what they raise and lower, the tokens, heads and lower features they read, the higher
    ones they feed, and what they do on prompts. (`BlindStudy` shows the same without examples.)

    Args:
        model, sets: a model and dictionaries of it; of autoencoders there is nothing that they read.
        layer, features: ids; None: `n_random` by lot of those that are alive, active on more than `min_density` of
            tokens.
        tokens, mask, context_size, batch_size: the corpus, read once (for features by lot, twice), as for
            `write_feature_pack`; None: no examples.
        pack: cards of `write_feature_pack`, instead of a corpus; they know of no neighbours.
        prompts: prompts to show the activations on.
        bands: examples by strength, `n_per_band` in each of `n_bands` bands: "uniform", of equal width up to the
            largest activation, or "quantile", of equally many contexts.
        n_top: contexts in which it is strongest.
        window: tokens shown on the left and right.
        k: tokens, features, neighbours listed.
        seed: of all lots.
        strict: False accepts dictionaries of a fine-tuned sibling of the model.

    Raises:
        ValueError: no such features, a corpus and a pack, or neither where features are drawn; a set of another model.
    """
    if bands not in BANDS:
        raise ValueError(f"dashboard: bands are {', '.join(BANDS)}, got {bands!r}")
    if tokens is not None and pack is not None:
        raise ValueError("dashboard: give a corpus or a pack, not both")
    if tokens is None and not (mask is None and context_size is None):
        raise ValueError("dashboard: mask and context_size are of a corpus: give tokens, or leave them out")
    counts = {"n_bands": n_bands, "n_per_band": n_per_band, "n_top": n_top, "k": k, "batch_size": batch_size}
    if wrong := [f"{name}={value}" for name, value in counts.items() if value < 1]:
        raise ValueError(f"dashboard: must be at least 1: {', '.join(wrong)}")
    if isinstance(prompts, str):
        raise ValueError(f"dashboard: prompts is one string; give a list of prompts, [{prompts!r}]")
    if len(window) != 2 or min(window) < 0:
        raise ValueError(f"dashboard: window must be two numbers from 0 on, got {window}")
    lens = as_lens(model)
    sets = lens.fitted(sets, strict=strict)
    if layer not in sets:
        raise ValueError(f"dashboard: no features of layer {layer}; the set has layers {sets.layers}")
    cards = pack if pack is None or isinstance(pack, FeaturePack) else FeaturePack(pack)
    corpus = None
    if tokens is not None:
        corpus = Batches.of(lens, tokens, mask=mask, context_size=context_size, batch_size=batch_size)
    if features is None:
        if corpus is not None:
            live = corpus_live(lens, sets, layer, corpus, min_density)
        elif cards is not None:
            live = pack_live(cards, layer, min_density)
        else:
            raise ValueError("dashboard: which features are alive shows in a corpus: give features, tokens or a pack")
        features = drawn(live, n_random, seed)
    ids = _checked(features, sets[layer].d_sae)
    parts: list[Part] = weight_parts(lens, sets, layer, ids, k)
    source: dict[str, Any] | None = None
    if corpus is not None:
        wanted = Examples(n_top, bands, n_bands, n_per_band, window)
        n_tokens, seen = seen_in(lens, sets, layer, ids, corpus, wanted, n_neighbours=k, seed=seed, verbose=verbose)
        parts = [part | own for part, own in zip(parts, seen, strict=True)]
        source = {"kind": "corpus", "tokens": n_tokens}
    elif cards is not None:
        # What the pack lists without figures is known here with them.
        parts = [_card(cards, layer, f) | part for f, part in zip(ids.tolist(), parts, strict=True)]
        source = {"kind": "pack", "path": Path(cards.path).name}
    content = {
        "format": FORMAT,
        "model": lens.model_name,
        "layer": layer,
        "source": source,
        "blind": None,
        "features": [
            {"layer": layer, "feature": f, "prompts": []} | part for f, part in zip(ids.tolist(), parts, strict=True)
        ],
    }
    for prompt in prompts:
        add_prompt(content, on_prompt(lens, sets, layer, ids, prompt))
    return Dashboard(content)


def add_prompt(content: dict[str, Any], found: Sequence[Part]) -> None:
    """Show another prompt with each of the features."""
    for part, own in zip(content["features"], found, strict=True):
        part["prompts"].append(own)


def _card(pack: FeaturePack, layer: int, feature: int) -> Part:
    try:
        return pack.card(layer, feature)
    except KeyError as error:
        raise ValueError(f"dashboard: {error.args[0]}; is it a pack of this set?") from error


def _checked(features: int | Sequence[int] | Tensor, F: int) -> Tensor:
    ids = torch.as_tensor(features).reshape(-1).cpu()
    if len(ids) and ids.dtype in (torch.bool, torch.float32, torch.float64):
        raise ValueError(f"dashboard: features are whole numbers, got {ids.tolist()[:9]}")
    ids = ids.long()
    if len(ids) == 0 or int(ids.min()) < 0 or int(ids.max()) >= F or len(torch.unique(ids)) < len(ids):
        raise ValueError(f"dashboard: features must be different ids in 0..{F - 1}, got {ids.tolist()[:9]}")
    return ids
