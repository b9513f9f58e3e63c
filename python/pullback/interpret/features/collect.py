"""One pass of a corpus through a model: what every feature of every layer is active on, into a feature pack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback.interpret.features.layer import LayerActivity
from pullback.interpret.features.logits import top_logits
from pullback.interpret.features.pack import writing
from pullback.interpret.features.reading import activations, read_corpus, shown
from pullback.interpret.features.records import feature_record
from pullback.lens import as_lens
from pullback.ops import SparseActivations
from pullback.training.masks import Excluded
from pullback.training.source import Tokens, is_packed, token_batches
from pullback.transcoders import LayeredDictionary


def write_feature_pack(
    model: Any,
    sets: LayeredDictionary,
    tokens: Tokens,
    out: str | os.PathLike[str],
    *,
    mask: Tensor | None = None,
    batch_size: int = 32,
    context_size: int | None = None,
    n_top: int = 20,
    n_quantiles: int = 5,
    n_per_quantile: int = 5,
    window: tuple[int, int] = (16, 8),
    n_logits: int = 10,
    seed: int = 0,
    strict: bool = True,
    verbose: bool = False,
) -> None:
    """Write `index.json.gz` and a `layer_{i}.bin` a layer, with a card for every feature of the set (FORMATS.md e).

    The model reads the tokens once. What is held meanwhile (`pack_nbytes`) grows with features and layers, not with the
    tokens. The folder appears whole, or what was there stays.

    Args:
        model: a TransformerLens model, or a `Lens` on one.
        sets: transcoders or autoencoders of some or all of its layers.
        tokens, mask, context_size: the corpus, as for `pullback.train`.
        batch_size: contexts of one forward pass.
        n_top: contexts a feature is shown in, the strongest first.
        n_quantiles, n_per_quantile: further ones, drawn from all that it is active in: by strength, in so many groups
            of so many.
        window: tokens shown on the left and right.
        n_logits: tokens that the feature says most, and least, through the direct path.
        seed: of the drawing.
        strict: False accepts transcoders of a fine-tuned sibling of the model.
        verbose: show progress.

    Raises:
        ValueError: a set that does not fit the model, no token that counts, or numbers below 1.
    """
    counts = {"batch_size": batch_size, "n_top": n_top, "n_quantiles": n_quantiles, "n_per_quantile": n_per_quantile}
    if wrong := [f"{name}={value}" for name, value in (counts | {"n_logits": n_logits}).items() if value < 1]:
        raise ValueError(f"write_feature_pack: must be at least 1: {', '.join(wrong)}")
    if len(window) != 2 or min(window) < 0:
        raise ValueError(f"write_feature_pack: window must be two numbers from 0 on, got {window}")
    lens = as_lens(model)
    sets = lens.fitted(sets, strict=strict)
    n_sampled = n_quantiles * n_per_quantile
    activity = {i: LayerActivity(sets[i].W_enc.shape[0], n_top, n_sampled, window) for i in sets.layers}
    excluded = Excluded.chosen(lens, packed=is_packed(tokens))
    batches = token_batches(lens, tokens, batch_size=batch_size, mask=mask, context_size=context_size)
    generator = torch.Generator().manual_seed(seed)

    def add(i: int, acts: SparseActivations, counts: Tensor, first: int) -> None:
        activity[i].add(acts, counts, first, generator)

    def referred() -> Iterator[Tensor]:
        return (contexts for layer in activity.values() for contexts in layer.referred())

    with torch.no_grad():
        stream = activations(lens, sets, sets.layers, shown(batches, "contexts", verbose), excluded)
        corpus = read_corpus(lens, stream, add, referred)
        with writing(out, lens.n_layers) as pack:
            for i in tqdm(sets.layers, desc="cards", unit="layer", disable=not verbose):
                said = top_logits(lens, sets, i, n_logits)
                own = activity.pop(i)
                records = (
                    feature_record(own, row, corpus, n_quantiles)
                    | {"transcoder_id": lens.model_name, "index": row}
                    | {name: [corpus.words[t] for t in ids[row].tolist()] for name, (_, ids) in said.items()}
                    for row in range(len(own.active))
                )
                pack.write(i, records)


def pack_nbytes(sets: LayeredDictionary, n_top: int, n_sampled: int, window: tuple[int, int]) -> int:
    """Memory that `write_feature_pack` holds while it reads the corpus, about."""
    return sum(LayerActivity.nbytes(sets[i].W_enc.shape[0], n_top, n_sampled, window) for i in sets.layers)
