"""`greedy_paths`: one prompt, one root, the paths that lead to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch

from pullback.attribution.asked import Asked
from pullback.attribution.local import LocalModel, local_model
from pullback.attribution.paths.filters import Filters, as_filters
from pullback.attribution.paths.norms import norms_of
from pullback.attribution.paths.paths import Paths
from pullback.attribution.paths.roots import root_of
from pullback.attribution.paths.search import SearchSettings, search
from pullback.lens import Lens, as_lens
from pullback.lens.tokens import Prompt, bos_id
from pullback.transcoders import LayeredDictionary


def greedy_paths(
    model: Any,
    sets: LayeredDictionary,
    prompt: Prompt,
    root: Asked,
    *,
    position: int = -1,
    num_iters: int | None = 2,
    num_branches: int | None = 5,
    raw: bool = True,
    absolute: bool = False,
    ignore_bos: bool = True,
    filters: Filters | str | Iterable[str] | None = None,
    leaves: bool = False,
    ln: str = "frozen",
    reference: bool = False,
    strict: bool = True,
) -> Paths:
    """The computational paths that contribute most to a feature, a logit or any direction, through transcoder features
    and attention heads.

    Method: Dunefsky, Chlenski and Nanda 2024, "Transcoders Find Interpretable LLM Feature Circuits", algorithm 1: from
    each of the best paths of one length to the sources that contribute most to it, of which the best over all paths are
    those of the next length. Contributions are to the root, along one path, with attention patterns, norms and the
    choice of active features frozen.

    Args:
        model: a TransformerLens model, or a `Lens` on one.
        sets: transcoders, per-layer or cross-layer, for any subset of its layers.
        prompt: a string (BOS by the model's default), token ids (T,), or the messages of a chat.
        root: what paths lead to: a token id or one-token string (its demeaned logit), `LogitTarget`, `LogitDifference`,
            `FeatureTarget`, or `DirectionTarget`, which may also be read at blocks.{l}.hook_mlp_out and hook_attn_out.
        position: where a root is read that does not say it itself; negative ones count from the end.
        num_iters: steps of the longest paths; None: until all have come to embeddings.
        num_branches: paths of each length; None: every one. Then the first layer's heads are followed to the
            embeddings as well, where they are the end of a path otherwise.
        raw: False caps what a path contributes at the smallest activation of a feature on it, the root's included,
            which is what is lost at most if that feature is ablated. Capped paths make no graph.
        absolute: rank by size, so that inhibition is followed as well.
        ignore_bos: follow no head to a beginning-of-sequence token.
        filters: nodes that paths may go through: a `FeatureFilter`, its text, or several, of which one must match.
        leaves: MLP errors and biases are candidates as well, as ends of paths.
        ln: "frozen" norms divide by a constant; "ratio" is the factor that Dunefsky et al. use (METHODS).
        reference: search as their code does: of every layer's heads at most n_heads sources; BOS is position 0; token
            and position embedding are one source; filters apply to the best of each layer; a cap is what the last
            feature contributes; in graphs, a bias is b_enc without the path's coefficients. (Features that are not
            active, which that code may list with a contribution of 0, are never listed.)
        strict: False accepts transcoders of a fine-tuned sibling.

    Raises:
        ValueError: a prompt the model cannot read, a root that it does not have, transcoders of another model, settings
            without meaning, or more paths than memory should hold.
    """
    settings = SearchSettings(
        num_iters=num_iters,
        num_branches=num_branches,
        raw=raw,
        absolute=absolute,
        ignore_bos=ignore_bos,
        filters=as_filters(filters),
        leaves=leaves,
        ln=ln,
        reference=reference,
    )
    lens = as_lens(model)
    local = local_model(lens, sets, lens.to_tokens(prompt), strict=strict)
    text = {"prompt": prompt} if isinstance(prompt, str) else {}
    return paths_of(lens, local, root, settings, position=position, meta=text)


@torch.no_grad()
def paths_of(
    lens: Lens,
    local: LocalModel,
    root: Asked,
    settings: SearchSettings,
    *,
    position: int = -1,
    meta: dict[str, Any] | None = None,
) -> Paths:
    """`greedy_paths` of a prompt that has been read: for many roots of one."""
    norms = norms_of(local, settings.ln)
    start = root_of(lens, local, norms, root, position)
    levels = search(local, norms, start, settings, _ignored(lens, local, settings))
    told = {
        "prompt": "".join(local.trace.str_tokens),
        "tokens": local.trace.tokens.tolist(),
        "str_tokens": local.trace.str_tokens,
        "model_name": lens.model_name,
        "root": start.name,
        "root_label": start.label,
        "search": asdict(settings) | {"filters": [asdict(one) for one in settings.filters]},
        **(meta or {}),
    }
    kept = [torch.ones_like(level.kind, dtype=torch.bool) for level in levels]
    return Paths(levels, kept, settings, told, local, norms)


def _ignored(lens: Lens, local: LocalModel, settings: SearchSettings) -> list[int]:
    """Positions that heads are not followed to."""
    if not settings.ignore_bos:
        return []
    if settings.reference:
        return [0]
    bos = bos_id(lens)
    return [] if bos is None else (local.trace.tokens == bos).nonzero()[:, 0].tolist()
