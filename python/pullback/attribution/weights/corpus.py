"""The features of a corpus, batch by batch, in one pass that can be taken up where it stopped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback.lens import Lens
from pullback.lens.tokens import bos_id
from pullback.ops import SparseActivations
from pullback.transcoders import LayeredDictionary

Activations = dict[int, SparseActivations]
"""{layer: n rows of features}, the same tokens for every layer"""


def corpus_features(
    lens: Lens,
    sets: LayeredDictionary,
    layers: Sequence[int],
    tokens: Tensor | Iterable[Tensor],
    *,
    mask: Tensor | None,
    batch_size: int,
    exclude_bos: bool,
    passed: int,
    verbose: bool,
    what: str,
) -> Iterator[tuple[int, Activations]]:
    """(prompts, features of the tokens that count) of every batch behind the first `passed` prompts.

    Raises ValueError for tokens or a mask of other shapes, a mask that is not of bool, or one of anything but a tensor
    of tokens.
    """
    if isinstance(tokens, str):
        raise ValueError(f"{what}: tokens are ids, [n, T], or batches of such, got a string")
    if isinstance(tokens, Tensor):
        if tokens.ndim != 2 or (mask is not None and mask.shape != tokens.shape):
            got = "" if mask is None else f" and {list(mask.shape)}"
            raise ValueError(f"{what}: tokens, and a mask of them, are [n, T], got {list(tokens.shape)}{got}")
        if mask is not None and mask.dtype != torch.bool:  # of numbers it would index tokens, not choose them
            raise ValueError(
                f"{what}: a mask is of torch.bool, true where a token counts, got {mask.dtype}: mask.bool()"
            )
        parts = tokens.split(batch_size) if len(tokens) else ()
        batches = zip(parts, [None] * len(parts) if mask is None else mask.split(batch_size), strict=False)
    elif mask is not None:
        raise ValueError(f"{what}: a mask goes with one tensor of tokens")
    else:
        batches = ((batch, None) for batch in tokens)
    empty = True
    for batch, kept in tqdm(batches, desc=what, unit="batch", disable=not verbose):
        empty = False
        if not isinstance(batch, Tensor) or batch.ndim != 2:
            got = list(batch.shape) if isinstance(batch, Tensor) else repr(batch)
            raise ValueError(f"{what}: tokens are ids, [n, T], or batches of such, got one of {got}")
        left = min(passed, len(batch))
        passed -= left
        if left < len(batch):
            counted = None if kept is None else kept[left:]
            yield len(batch) - left, _features(lens, sets, layers, batch[left:], counted, exclude_bos)
    if empty:
        raise ValueError(f"{what}: there is no text: tokens are empty, or an iterator that was gone through before")


def _features(
    lens: Lens, sets: LayeredDictionary, layers: Sequence[int], tokens: Tensor, mask: Tensor | None, exclude_bos: bool
) -> Activations:
    keep = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.clone()
    bos = bos_id(lens)
    if exclude_bos and bos is not None:
        keep[:, 0] &= tokens[:, 0] != bos
    sites = {layer: lens.input_site(layer, sets.hook_in(layer)) for layer in layers}
    seen = lens.record_only(tokens, list(sites.values()))
    rows = keep.flatten().to(lens.device)
    inputs = {layer: seen[site].to(lens.compute_dtype).flatten(0, 1)[rows] for layer, site in sites.items()}
    return {layer: sets.encode(layer, x) for layer, x in inputs.items()}
