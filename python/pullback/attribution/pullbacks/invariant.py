"""Pullbacks: what every source adds to a target per unit, whatever the input (Dunefsky et al. 2024; METHODS 1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.attribution.pullbacks.chains import as_chain, direction, entrance
from pullback.attribution.pullbacks.norms import rule
from pullback.attribution.pullbacks.reads import Wanted, reads
from pullback.attribution.pullbacks.sources import SourceAsked, as_source
from pullback.attribution.weights.wiring import Head, Wiring
from pullback.ops import top_pullbacks
from pullback.transcoders import LayeredDictionary

if TYPE_CHECKING:
    import pandas as pd

DENSE = 2**27
"""Numbers of a table of all sources; more must be asked for with k."""


@dataclass(frozen=True, eq=False)
class Pullback:
    """r targets by n sources, or by the k sources of each that weigh most."""

    targets: list[str]  # r; of features "{layer}_{feature}"
    source: str
    heads: list[Head]
    values: Tensor  # (r, n) or (r, k)
    ids: Tensor | None = None  # (r, k) int64: which source; None: all, in order

    def __repr__(self) -> str:
        r, n = self.values.shape
        through = "".join(f" through {layer}.{head}" for layer, head in self.heads)
        top = "" if self.ids is None else "top "
        return f"Pullback({r} targets{through} onto {top}{n} of: {self.source})"

    def top(self, k: int = 10, *, absolute: bool = True) -> Pullback:
        """The k sources that weigh most, by absolute value or with their sign; the largest first."""
        key = self.values.abs() if absolute else self.values
        order = key.argsort(dim=1, descending=True, stable=True)[:, :k]
        ids = order if self.ids is None else self.ids.gather(1, order)
        return Pullback(self.targets, self.source, self.heads, self.values.gather(1, order), ids)

    def to_pandas(self, k: int | None = None) -> pd.DataFrame:
        """target, source (its id), pullback; k: of each target the k largest in absolute value."""
        import pandas as pd

        one = self if k is None else self.top(k)
        r, n = one.values.shape
        ids = torch.arange(n).expand(r, n) if one.ids is None else one.ids
        names = [target for target in one.targets for _ in range(n)]
        return pd.DataFrame(
            {"target": names, "source": ids.flatten().numpy(), "pullback": one.values.flatten().cpu().numpy()}
        )


@torch.no_grad()
def pullback(
    model: Any,
    sets: LayeredDictionary,
    target: Wanted,
    source: SourceAsked,
    *,
    heads: Sequence[Any] = (),
    k: int | None = None,
    absolute: bool = True,
    ln: str = "frozen",
    strict: bool = True,
) -> Pullback:
    """How much each source adds to each target per unit that it is active, by weights alone.

    Along one way: at the same token through the residual stream, or through one head, or through a chain of heads. What
    a prompt makes of it, activation by activation and pattern by pattern, is `input_attribution`.

    Args:
        model, sets: a model and its transcoders, per-layer or cross-layer.
        target: (layer, feature ids), ids None for all of the layer; or tokens, logits, differences of logits and
            directions as `attribute` takes them (their positions do not matter here). All are read at one place.
        source: a layer: its features. "embedding": tokens, so the de-embedding. "position": position vectors.
            "residual": the stream itself, so the pulled-back vector. (autoencoders, layer): features of autoencoders of
            attention or MLP outputs or of the stream.
        heads: (layer, head), or several of them from the source up to the target.
        k: keep the k sources of each target that weigh most, a block of sources at a time; None: all.
        absolute: by absolute value; False: the largest.
        ln: "frozen": weights and centring of the norms on the way count, their denominators are left out. "ratio":
            norms are left out altogether.
        strict: False accepts transcoders of a fine-tuned sibling.

    Raises:
        ValueError: targets, sources or heads that there are not, or that do not lie above each other; a table of all
            sources that is too large; transcoders of another model, autoencoders in the place of transcoders.
    """
    wiring = Wiring(model, sets, strict=strict)
    read, chain, found = reads(wiring, target), as_chain(wiring.lens, heads), as_source(wiring, source)
    depth = entrance(wiring, read.depth, chain)
    found.must_reach(depth)
    v = direction(wiring, read, chain, rule(ln))
    W = found.vectors(wiring, depth)
    if k is not None:
        if k < 1:
            raise ValueError(f"pullback: k must be at least 1, got {k}")
        values, ids = top_pullbacks(v, W, min(k, len(W)), absolute=absolute)
        return Pullback(read.labels, found.name, chain, values.cpu(), ids.cpu().long())
    if len(v) * len(W) > DENSE:
        raise ValueError(
            f"pullback: {len(v)} targets by {len(W)} sources are too many for one table; give k, to keep the largest "
            "of each target, or fewer targets"
        )
    return Pullback(read.labels, found.name, chain, (v @ W.T).cpu())
