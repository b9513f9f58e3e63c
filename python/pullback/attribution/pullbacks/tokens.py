"""What features read of tokens and say of them: de-embeddings and logit effects (METHODS 1.10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pullback.attribution.pullbacks.chains import as_chain, direction, entrance
from pullback.attribution.pullbacks.effects import TokenEffects, token_effects
from pullback.attribution.pullbacks.norms import rule
from pullback.attribution.pullbacks.reads import FeatureIds, final_norm, reads
from pullback.attribution.pullbacks.sources import embedding
from pullback.attribution.weights.wiring import Wiring
from pullback.lens import Lens
from pullback.transcoders import LayeredDictionary


@torch.no_grad()
def deembed(
    model: Any,
    sets: LayeredDictionary,
    layer: int,
    features: FeatureIds,
    *,
    heads: Sequence[Any] = (),
    k: int = 10,
    zscore: bool = False,
    whiten: bool = False,
    full: bool = False,
    ln: str = "frozen",
    strict: bool = True,
) -> TokenEffects:
    """The tokens whose embeddings features read most and least: W_E times their encoder rows.

    Args:
        layer, features: ids of the features asked about; None: all of the layer.
        heads: (layer, head), or several from the embeddings up: tokens at the positions that these look at.
        k: tokens kept at either end.
        zscore: in standard deviations over the vocabulary, from its mean.
        whiten: of embeddings that are centred and decorrelated over the vocabulary.
        full: keep the values of all tokens too.
        ln, strict: as `pullback`.

    Raises:
        ValueError: as `pullback`, and k under 1.
    """
    wiring = Wiring(model, sets, strict=strict)
    read, chain = reads(wiring, (layer, features)), as_chain(wiring.lens, heads)
    entrance(wiring, read.depth, chain)
    v = direction(wiring, read, chain, rule(ln))
    through = "".join(f" through {layer}.{head}" for layer, head in chain)
    options = {"k": k, "zscore": zscore, "whiten": whiten, "full": full}
    return token_effects(wiring.lens, f"de-embedding{through}", read.labels, v, embedding(wiring.lens), **options)


@torch.no_grad()
def logit_effects(
    model: Any,
    sets: LayeredDictionary,
    layer: int,
    features: FeatureIds,
    *,
    k: int = 10,
    demean: bool = True,
    final_scale: float | None = None,
    zscore: bool = False,
    whiten: bool = False,
    full: bool = False,
    strict: bool = True,
) -> TokenEffects:
    """The tokens whose logits features raise and lower most, directly: their decoder rows times W_U.

    Of a cross-layer transcoder, the sum of the decoders of all layers. The weights and the centring of the last norm
    count.

    Args:
        layer, features: ids of the features asked about; None: all of the layer.
        k: tokens kept at either end.
        demean: of W_U its mean over the vocabulary is left out, which moves all logits alike.
        final_scale: the last norm's denominator, of a position of a prompt: effects are then in units of logits. None:
            1.
        zscore, whiten, full: as `deembed`, whiten of unembeddings.

    Raises:
        ValueError: features that there are not, k under 1, transcoders of another model, or autoencoders; final_scale
            with z-scores, which have no scale, or demean=False with what is centred.
    """
    if zscore and final_scale is not None:
        raise ValueError("logit_effects: z-scores have no scale; leave out final_scale, or zscore")
    if not demean and (zscore or whiten):
        raise ValueError("logit_effects: zscore and whiten centre the unembeddings; leave out demean=False, or these")
    if final_scale is not None and not final_scale > 0:
        raise ValueError(f"logit_effects: final_scale is the denominator of a norm, above 0; got {final_scale}")
    wiring = Wiring(model, sets, strict=strict)
    ids = wiring.ids(layer, features)
    writes = wiring.writes(layer, wiring.lens.n_layers, ids) / (final_scale or 1.0)
    labels = [f"{layer}_{i}" for i in ids.tolist()]
    options = {"k": k, "zscore": zscore, "whiten": whiten, "full": full}
    return token_effects(wiring.lens, "logit effects", labels, writes, unembedding(wiring.lens, demean), **options)


def unembedding(lens: Lens, demean: bool = True) -> Tensor:
    """W_U, a row a token, as it reads the stream before the last norm with a denominator of 1, (V, d)."""
    rows = lens.W_U.to(lens.compute_dtype).T
    rows = rows - rows.mean(0) if demean else rows
    return final_norm(lens).pullback(rows, rows.new_ones(1)).contiguous()
