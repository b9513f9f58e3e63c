"""What can be a source of a pullback: whatever writes vectors of its own into the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pullback.attribution.weights.wiring import Wiring
from pullback.lens import Lens
from pullback.lens.depth import at_mlp, before_block, block_of
from pullback.lens.structure import probe_tokens, relative_error, tolerance
from pullback.transcoders import LayeredDictionary

FEATURE, EMBEDDING, POSITION, RESIDUAL = "feature", "embedding", "position", "residual"
SourceAsked: TypeAlias = int | str | tuple[LayeredDictionary, int]
"""A layer of the transcoders; "embedding", "position" or "residual"; or (autoencoders, layer)."""


def behind_block(layer: int) -> int:
    return before_block(layer + 1)


WRITTEN = {
    "hook_resid_pre": before_block,
    **dict.fromkeys(("hook_attn_out", "hook_resid_mid"), at_mlp),
    **dict.fromkeys(("hook_mlp_out", "mlp.hook_out", "hook_resid_post"), behind_block),
}
"""The depth from which on the stream holds what is written at a hook."""


@dataclass(frozen=True, eq=False)
class Source:
    """One kind of source; of features, those of a layer."""

    kind: str
    written: int  # the depth (`lens.depth`) from which on the stream holds it
    layer: int = -1
    autoencoders: LayeredDictionary | None = None  # None: the transcoders

    @property
    def name(self) -> str:
        if self.kind != FEATURE:
            return self.kind
        if self.autoencoders is None:
            return f"features of layer {self.layer}"
        return f"autoencoder features at {self.autoencoders.hook_out(self.layer)} of layer {self.layer}"

    def must_reach(self, depth: int) -> None:
        """Raises ValueError where what reads the stream at this depth is not above the source."""
        if self.written > depth:
            layer = block_of(depth)
            where = f"where MLP {layer} reads" if depth == at_mlp(layer) else f"before block {layer}"
            raise ValueError(
                f"pullback: the source ({self.name}) is written above what reads it: the stream {where}. A source lies "
                "below the first head it goes through, or below the target"
            )

    def vectors(self, wiring: Wiring, depth: int, ids: Tensor | None = None) -> Tensor:
        """What each of them writes into the stream up to a depth, (n, d); of the residual stream, its basis."""
        lens = wiring.lens
        if self.kind == FEATURE:
            if self.autoencoders is None:
                return wiring.writes(self.layer, block_of(depth), ids)
            rows = self.autoencoders.decoder(self.layer, self.layer)
            return rows[:] if ids is None else self.autoencoders.decoder_rows(self.layer, ids, self.layer)
        every = {EMBEDDING: embedding, POSITION: position_embedding, RESIDUAL: _basis}[self.kind](lens)
        return every if ids is None else every[ids]


def as_source(wiring: Wiring, asked: SourceAsked) -> Source:
    """Raises ValueError for a source that there is not."""
    if asked in (EMBEDDING, POSITION, RESIDUAL):
        return Source(str(asked), 0)
    if isinstance(asked, tuple) and len(asked) == 2 and isinstance(asked[0], LayeredDictionary):
        return _autoencoder(wiring.lens, *asked)
    if isinstance(asked, Integral) and not isinstance(asked, bool):
        if asked not in wiring.sets:
            raise ValueError(f"pullback: no features of layer {asked}; the set has layers {wiring.sets.layers}")
        return Source(FEATURE, behind_block(int(asked)), int(asked))
    raise ValueError(
        f"pullback: a source is a layer of the set, {EMBEDDING!r}, {POSITION!r}, {RESIDUAL!r}, or (autoencoders, "
        f"layer); got {asked!r}"
    )


def _autoencoder(lens: Lens, sets: LayeredDictionary, layer: Any) -> Source:
    if layer not in sets:
        raise ValueError(f"pullback: no autoencoder of layer {layer}; the set has layers {sets.layers}")
    hook = sets.hook_out(layer)
    if hook not in WRITTEN or sets.d_model != lens.d_model:
        raise ValueError(
            f"pullback: autoencoders write {lens.d_model} numbers at one of {', '.join(WRITTEN)}; these write "
            f"{sets.d_model} at '{hook}'"
        )
    # A parallel block's attention and MLP both write at its end.
    written = WRITTEN[hook](layer)
    if lens.parallel and written == at_mlp(layer):
        written = behind_block(layer)
    return Source(FEATURE, written, layer, sets.to(dtype=lens.compute_dtype, device=lens.device))


def embedding(lens: Lens) -> Tensor:
    """W_E as it enters the stream, (V, d): some models scale it. Raises ValueError where that is no multiple of it."""
    tokens = probe_tokens(lens).to(lens.device)
    W_E = lens.W_E.to(lens.compute_dtype)
    rows, seen = W_E[tokens[0]], lens.record_only(tokens, ["hook_embed"])["hook_embed"][0].to(W_E)
    scale = (rows * seen).sum() / rows.square().sum()
    if not relative_error(rows * scale, seen) <= tolerance(lens.dtype):
        raise ValueError(f"pullback: the embeddings of {lens.model_name} are no multiple of its W_E; not supported")
    return W_E if abs(float(scale) - 1) <= tolerance(lens.dtype) else W_E * scale


def position_embedding(lens: Lens) -> Tensor:
    """W_pos, (n_ctx, d). Raises ValueError where positions enter through attention."""
    if lens.positional != "learned":
        raise ValueError(f"pullback: {lens.model_name} adds no position vectors ({lens.positional} positions)")
    return lens.model.W_pos.detach().to(lens.compute_dtype)


def _basis(lens: Lens) -> Tensor:
    return torch.eye(lens.d_model, dtype=lens.compute_dtype, device=lens.device)
