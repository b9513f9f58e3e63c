"""Input-dependent attributions: pullbacks times what one prompt brings (Dunefsky et al. 2024; METHODS 1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.attribution.local import LocalModel, local_model
from pullback.attribution.pullbacks.chains import as_chain, entrance, followed
from pullback.attribution.pullbacks.norms import rule
from pullback.attribution.pullbacks.reads import Wanted, reads
from pullback.attribution.pullbacks.sources import EMBEDDING, FEATURE, POSITION, Source, SourceAsked, as_source
from pullback.attribution.weights.wiring import Head, Wiring
from pullback.lens.tokens import Prompt
from pullback.ops import SparseActivations
from pullback.transcoders import LayeredDictionary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class InputAttribution:
    """What n sources of a prompt add to r targets along one way; of features, those that are active."""

    targets: list[str]  # r
    positions: list[int]  # r: of the targets
    source: str
    heads: list[Head]
    pos: Tensor  # (n) int64: the source's position
    ids: Tensor  # (n) int64: feature or token id; of the stream and of positions, the position
    activations: Tensor  # (n): of features; 1 for the rest
    coefficients: Tensor  # (r, n): patterns of the heads, and factors of the norms
    pullbacks: Tensor  # (r, n): as `pullback` has them; of the stream, <direction, x>

    @property
    def values(self) -> Tensor:
        """The attributions, (r, n)."""
        return self.pullbacks * self.activations * self.coefficients

    @property
    def total(self) -> Tensor:
        """Over all sources, (r)."""
        return self.values.sum(1)

    def __repr__(self) -> str:
        through = "".join(f" through {layer}.{head}" for layer, head in self.heads)
        return f"InputAttribution({len(self.targets)} targets{through}, {len(self.pos)} of: {self.source})"

    def to_pandas(self, k: int | None = None) -> pd.DataFrame:
        """target, target_pos, source, pos, attribution, pullback, activation, coefficient; the largest in absolute
        value first, k: of each target the first k."""
        import pandas as pd

        values = self.values
        order = values.abs().argsort(dim=1, descending=True, stable=True)[:, :k]
        rows = torch.arange(len(values))[:, None].expand_as(order).flatten()
        at = order.flatten()
        columns = {"source": self.ids[at], "pos": self.pos[at], "attribution": values[rows, at]}
        columns |= {"pullback": self.pullbacks[rows, at], "activation": self.activations[at]}
        columns |= {"coefficient": self.coefficients[rows, at]}
        named = {
            "target": [self.targets[i] for i in rows.tolist()],
            "target_pos": [self.positions[i] for i in rows.tolist()],
        }
        return pd.DataFrame(named | {name: column.cpu().numpy() for name, column in columns.items()})


@torch.no_grad()
def input_attribution(
    model: Any,
    sets: LayeredDictionary,
    prompt: Prompt | LocalModel,
    target: Wanted,
    source: SourceAsked,
    *,
    position: int = -1,
    heads: Sequence[Any] = (),
    ln: str = "frozen",
    strict: bool = True,
) -> InputAttribution:
    """`pullback` on one prompt: what every source at every position adds to the targets along one way.

    A feature adds its activation times its pullback, a token its embedding's; through heads times their patterns, from
    every position that they look at; over the denominators of the norms. It is input times gradient with patterns,
    norms and everything that is not on the way held fixed. What all ways and all sources add, biases and errors of the
    transcoders among them, is the target's pre-activation where ln is "frozen".

    Args:
        prompt: text, token ids, or messages of a chat; or the `local_model` of one, where one asks often.
        position: of the targets that do not say theirs.
        ln: "frozen": denominators of norms are numbers. "ratio": as the authors' code, see `norms.Ratio`.
        target, source, heads, strict: as `pullback`; with source "residual" and one head, what the head brings from
            every position.

    Raises:
        ValueError: as `pullback`; a prompt that the model cannot read, a position outside it.
    """
    wiring = Wiring(model, sets, strict=strict)
    lens, norms = wiring.lens, rule(ln)
    read, chain, found = reads(wiring, target), as_chain(lens, heads), as_source(wiring, source)
    depth = entrance(wiring, read.depth, chain)
    found.must_reach(depth)
    local = prompt if isinstance(prompt, LocalModel) else local_model(lens, sets, lens.to_tokens(prompt), strict=strict)
    T = local.n_pos
    asked = [position if own is None else own for own in read.positions]
    if any(not -T <= own < T for own in asked):
        raise ValueError(f"pullback: positions {asked} do not all lie in the prompt, which has {T} tokens")
    positions = torch.tensor([own % T for own in asked], device=lens.device)
    v, coefficients = followed(wiring, read, positions, chain, norms, local.trace)

    if found.kind == FEATURE:
        acts = _activations(wiring, local, found)
        acts = acts.where(coefficients.ne(0).any(0)[acts.rows()])
        pos, ids, activations = acts.rows(), acts.indices.long(), acts.values
        active, which = ids.unique(return_inverse=True)
        pullbacks = (v @ found.vectors(wiring, depth, active).T)[:, which]
    else:
        t = local.trace
        pos = torch.arange(T, device=lens.device)
        ids = t.tokens.to(lens.device) if found.kind == EMBEDDING else pos
        activations = coefficients.new_ones(T)
        pullbacks = v @ _vectors(local, found, depth).T
    return InputAttribution(
        read.labels,
        positions.tolist(),
        found.name,
        chain,
        pos.cpu(),
        ids.cpu(),
        activations.cpu(),
        coefficients[:, pos].cpu(),
        pullbacks.cpu(),
    )


def _activations(wiring: Wiring, local: LocalModel, source: Source) -> SparseActivations:
    """A row of features a position."""
    if source.autoencoders is None:
        return local.acts[source.layer]
    site = f"blocks.{source.layer}.{source.autoencoders.hook_in(source.layer)}"
    x = wiring.lens.record_only(local.trace.tokens[None], [site])[site][0]
    return source.autoencoders.encode(source.layer, x.to(wiring.lens.compute_dtype))


def _vectors(local: LocalModel, source: Source, depth: int) -> Tensor:
    """What stands in the stream at every position, (T, d)."""
    t = local.trace
    if source.kind == EMBEDDING:
        return t.embed
    if source.kind == POSITION:
        if t.pos_embed is None:
            raise ValueError(f"pullback: {t.model_name} adds no position vectors")
        return t.pos_embed
    return t.stream(depth)
