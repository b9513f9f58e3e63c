"""Refusing a transcoder on a model it was not trained on, with a sentence that says what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pullback.lens.fingerprint import same_weight
from pullback.transcoders import LayeredDictionary, ModelReading

if TYPE_CHECKING:
    from pullback.lens.adapter import Lens

AFTER_AFFINE = ("mlp.hook_in", "ln2.hook_out")


def check_compatible(lens: Lens, sets: LayeredDictionary, *, strict: bool = True) -> None:
    """Raise ValueError where shapes, hooks, norm, folding or the MLP itself differ.

    `strict=False` skips the comparison of MLP weights (or, where folding makes them incomparable, of depth and
    vocabulary), for a fine-tuned sibling of the model that the transcoders were trained on; shapes, hooks and norms are
    compared always.
    """
    here = lens.reading(None)
    if not isinstance(sets, LayeredDictionary):
        raise ValueError(f"sets must be a TranscoderSet, got {type(sets).__name__}; wrap {{layer: transcoder}} in one")
    for layer in sets.layers:
        if not 0 <= layer < lens.n_layers:
            raise ValueError(
                f"the set has a transcoder for layer {layer}, but {lens.model_name} has layers 0..{lens.n_layers - 1}: "
                "these transcoders belong to another model"
            )
        tc = sets[layer]
        if tc.d_in != lens.d_model or tc.d_out != lens.d_model:
            raise ValueError(
                f"the transcoder of layer {layer} maps {tc.d_in} to {tc.d_out} dimensions, but {lens.model_name} has "
                f"d_model {lens.d_model}: it belongs to another model"
            )
        lens.site_pair(layer, sets.hook_in(layer), sets.hook_out(layer))
        if tc.reading is not None:
            _compare(lens, layer, sets.hook_in(layer), tc.reading, here, strict)


def must_be_transcoders(sets: LayeredDictionary, purpose: str) -> None:
    """Raise ValueError where a layer holds an autoencoder, which reads what it writes."""
    own = [layer for layer in sets.layers if sets.hook_in(layer) == sets.hook_out(layer)]
    if own:
        raise ValueError(
            f"{purpose} goes through transcoders, which read an MLP's input and write its output; at layers {own} this "
            f"set has autoencoders of {sets.hook_out(own[0])}. Train with hook_name='mlp.hook_in', "
            "hook_name_out='hook_mlp_out', or evaluate these with pb.evaluate"
        )


def must_be_attention_saes(sets: LayeredDictionary, purpose: str) -> None:
    """Raise ValueError where a layer holds anything but an autoencoder of attention's output in the stream."""
    other = [layer for layer in sets.layers if {sets.hook_in(layer), sets.hook_out(layer)} != {"hook_attn_out"}]
    if other:
        hooks = f"{sets.hook_in(other[0])} -> {sets.hook_out(other[0])}"
        raise ValueError(
            f"{purpose} takes autoencoders that read and write hook_attn_out; at layers {other} this set has {hooks}. "
            "Train with hook_name='hook_attn_out'"
        )
    if skips := [layer for layer in sets.layers if sets.skip(layer) is not None]:
        raise ValueError(f"{purpose} cannot have skip connections; those of layers {skips} have")


def _compare(lens: Lens, layer: int, hook_in: str, trained: ModelReading, here: ModelReading, strict: bool) -> None:
    if trained.norm != here.norm:
        raise _mismatch(layer, f"was trained behind a {trained.norm} norm, and {lens.model_name} has {here.norm}")
    if trained.parallel != here.parallel:
        kind = {True: "parallel", False: "sequential"}
        raise _mismatch(
            layer, f"was trained in a {kind[trained.parallel]} block, and this one is {kind[here.parallel]}"
        )
    # Folding moves the norm's affine into W_in: the tensor after the affine changes with it, the one before does not.
    if hook_in in AFTER_AFFINE and trained.folded != here.folded:
        word = {True: "folded", False: "not folded"}
        raise _mismatch(
            layer,
            f"was trained at {hook_in} of a model whose norms were {word[trained.folded]}, and here they are "
            f"{word[here.folded]}; open the model the same way (enable_compatibility_mode folds), or convert the "
            "transcoder",
        )
    if strict:
        _same_mlp(lens, layer, trained, here)


def _same_mlp(lens: Lens, layer: int, trained: ModelReading, here: ModelReading) -> None:
    """Strict only: the very MLP of the very layer, as far as that can be told."""
    otherwise = "pass strict=False to use it on a fine-tuned sibling all the same"
    if trained.layer not in (None, layer):
        raise _mismatch(layer, f"was trained at layer {trained.layer}; {otherwise}")
    # Folding rewrites W_in, so fingerprints compare only between equal foldings; sizes compare always.
    ours = lens.fingerprint(layer) if trained.folded == here.folded else None
    if trained.mlp_fingerprint is not None and ours is not None:
        if not same_weight(trained.mlp_fingerprint, ours):
            raise _mismatch(
                layer,
                f"was trained on the MLP of {trained.model_name}, and {lens.model_name} has other weights there; "
                f"{otherwise}",
            )
        return
    for what in ("n_layers", "d_vocab"):
        theirs, ours = getattr(trained, what), getattr(here, what)
        if theirs != ours:
            raise _mismatch(
                layer,
                f"was trained on {trained.model_name} with {what} {theirs}, and {lens.model_name} has {ours}; "
                f"{otherwise}",
            )


def _mismatch(layer: int, what: str) -> ValueError:
    return ValueError(f"the transcoder of layer {layer} {what}")
