"""A corpus through a model once: activations of some layers, batch by batch, and the contexts that are still wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback.interpret.features.contexts import Contexts
from pullback.interpret.features.records import Corpus
from pullback.lens import Lens
from pullback.ops import SparseActivations
from pullback.training.masks import Excluded
from pullback.training.source import Batch, Tokens, is_packed, token_batches
from pullback.transcoders import LayeredDictionary


class Read(NamedTuple):
    """One batch of contexts."""

    tokens: Tensor  # Int (B, T)
    there: Tensor  # Bool (B, T): no padding
    counts: Tensor  # Bool (B, T): counts for statistics
    acts: dict[int, SparseActivations]  # by layer, B * T rows


class Batches(NamedTuple):
    """A corpus that can be read more than once: token ids are small beside what the model makes of them."""

    batches: list[Batch]
    excluded: Excluded

    @classmethod
    def of(
        cls, lens: Lens, tokens: Tokens, *, mask: Tensor | None, context_size: int | None, batch_size: int
    ) -> Batches:
        """As `token_batches` takes them."""
        batches = token_batches(lens, tokens, batch_size=batch_size, mask=mask, context_size=context_size)
        return cls(list(batches), Excluded.chosen(lens, packed=is_packed(tokens)))


def activations(
    lens: Lens, sets: LayeredDictionary, layers: Iterable[int], batches: Iterable[Batch], excluded: Excluded
) -> Iterator[Read]:
    """Features of layers over a corpus, one forward pass a batch, which stops behind the last of the layers."""
    sites = {i: site for i, (site, _) in lens.sites(sets, layers).items()}
    for tokens, mask in batches:
        seen = lens.record_only(tokens, list(dict.fromkeys(sites.values())))
        acts = {i: sets.encode(i, seen[site]) for i, site in sites.items()}
        yield Read(tokens, mask, excluded.applied(tokens, mask), acts)


def read_corpus(
    lens: Lens,
    stream: Iterable[Read],
    add: Callable[[int, SparseActivations, Tensor, int], None],
    referred: Callable[[], Iterable[Tensor]],
) -> Corpus:
    """Hand every layer's activations of a batch to `add(layer, acts, counts, number of the first context)`, and keep
    the contexts whose numbers are `referred` to.

    Raises ValueError if no token counts.
    """
    contexts, n_tokens = Contexts(), 0
    for tokens, there, counts, acts in stream:
        first = contexts.add(torch.where(there, tokens, -1))
        n_tokens += int(counts.sum())
        for i, own in acts.items():
            add(i, own, counts, first)
        if contexts.full:
            contexts.keep(referred())
    if n_tokens == 0:
        raise ValueError("feature cards: no token counts; the mask is false everywhere, or all are special")
    contexts.keep(referred())
    return Corpus(*contexts.table(), n_tokens, lens.to_str_tokens(torch.arange(lens.d_vocab)))


def shown(batches: Iterator[Batch], what: str, verbose: bool) -> Iterator[Batch]:
    """The batches, and a bar that counts their contexts."""
    with tqdm(desc=what, unit="context", disable=not verbose) as bar:
        for tokens, mask in batches:
            yield tokens, mask
            bar.update(len(tokens))
