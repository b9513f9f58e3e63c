"""Tables of tokens: one value for every token of the vocabulary, of which the largest and the smallest are kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.attribution.pullbacks.invariant import DENSE
from pullback.attribution.reader import token_id
from pullback.lens import Lens
from pullback.ops import top_pullbacks

if TYPE_CHECKING:
    import pandas as pd

NEGLIGIBLE = 1e-9
"""Of the largest variance: directions with less are not whitened but left out."""
SHOWN = 5


@dataclass(frozen=True, eq=False)
class TokenEffects:
    """Of r features the tokens at both ends, the most extreme first."""

    what: str
    features: list[str]  # r: "{layer}_{feature}"
    top: Tensor  # (r, k)
    top_ids: Tensor  # (r, k) int64
    bottom: Tensor  # (r, k)
    bottom_ids: Tensor  # (r, k) int64
    lens: Lens
    values: Tensor | None = None  # (r, V), where asked for

    def __repr__(self) -> str:
        lines = [
            f"TokenEffects({self.what} of {len(self.features)} features, {self.top.shape[1]} tokens at either end)"
        ]
        for n, feature in enumerate(self.features[:SHOWN]):
            ends = ((self.top, self.top_ids), (self.bottom, self.bottom_ids))
            high, low = (
                ", ".join(f"{token!r} {value:+.2f}" for token, value in self._pairs(values[n], ids[n])[:SHOWN])
                for values, ids in ends
            )
            lines.append(f"  {feature}: {high} ... {low}")
        return "\n".join(lines + (["  ..."] if len(self.features) > SHOWN else []))

    def to_pandas(self) -> pd.DataFrame:
        """feature, end ("top" or "bottom"), rank from 0, token_id, token, value."""
        import pandas as pd

        parts = []
        for end, values, ids in (("top", self.top, self.top_ids), ("bottom", self.bottom, self.bottom_ids)):
            r, k = ids.shape
            columns = {"feature": [name for name in self.features for _ in range(k)], "end": end}
            columns |= {"rank": list(range(k)) * r, "token_id": ids.flatten().numpy()}
            columns |= {"token": self.lens.to_str_tokens(ids), "value": values.flatten().numpy()}
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts).sort_values("feature", kind="stable", key=self._place, ignore_index=True)

    def on(self, tokens: Sequence[int | str]) -> Tensor:
        """Values of chosen tokens, (r, n). Raises ValueError unless all were kept, or for what is no token."""
        if self.values is None:
            raise ValueError(f"{self.what}: only the ends were kept; ask with full=True")
        return self.values[:, [token_id(self.lens, token) for token in tokens]]

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Bars of both ends, a panel a feature, into a .png, .svg or .pdf. Raises ValueError without matplotlib."""
        from pullback.viz import tokens

        tokens.draw_bars(self.to_dict(), path)

    def to_dict(self) -> dict[str, Any]:
        """{"what", "features": {name: {"top" and "bottom": [(token, value)]}}}"""
        features = {
            name: {
                "top": self._pairs(self.top[n], self.top_ids[n]),
                "bottom": self._pairs(self.bottom[n], self.bottom_ids[n]),
            }
            for n, name in enumerate(self.features)
        }
        return {"what": self.what, "features": features}

    def _pairs(self, values: Tensor, ids: Tensor) -> list[tuple[str, float]]:
        return list(zip(self.lens.to_str_tokens(ids), values.tolist(), strict=True))

    def _place(self, names: pd.Series) -> pd.Series:
        return names.map({name: n for n, name in enumerate(self.features)})


def token_effects(
    lens: Lens,
    what: str,
    features: list[str],
    v: Tensor,
    W: Tensor,
    *,
    k: int,
    zscore: bool,
    whiten: bool,
    full: bool,
) -> TokenEffects:
    """The k largest and k smallest of <W[token], v> for every v (r, d), W (V, d). Raises ValueError for k under 1, and
    where all values would be too large a table."""
    if k < 1:
        raise ValueError(f"{what}: k must be at least 1, got {k}")
    if full and len(v) * len(W) > DENSE:
        raise ValueError(f"{what}: {len(v)} features by {len(W)} tokens are too many for full=True; ask for fewer")
    if zscore or whiten:
        centred = W - W.mean(0)
        covariance = centred.T @ centred / len(W)
        # Both ways of measuring are linear in W, so they are changes of v, and of where the values start.
        if whiten:
            v, W = v @ _inverse_root(covariance), centred
        if zscore:
            v, W = v / _spread(v, covariance), centred
    k = min(k, len(W))
    (top, top_ids), (bottom, bottom_ids) = top_pullbacks(v, W, k), top_pullbacks(-v, W, k)
    return TokenEffects(
        what,
        features,
        top.cpu(),
        top_ids.cpu().long(),
        -bottom.cpu(),
        bottom_ids.cpu().long(),
        lens,
        (v @ W.T).cpu() if full else None,
    )


def _spread(v: Tensor, covariance: Tensor) -> Tensor:
    """Standard deviation of <W[token], v> over tokens, (r, 1)."""
    return ((v @ covariance) * v).sum(1, keepdim=True).clamp(min=0).sqrt().clamp(min=torch.finfo(v.dtype).tiny)


def _inverse_root(covariance: Tensor) -> Tensor:
    """Symmetric, of the directions that vary, (d, d)."""
    variances, axes = torch.linalg.eigh(covariance.double())
    vary = variances > NEGLIGIBLE * variances[-1]
    axes = axes[:, vary]
    return ((axes / variances[vary].sqrt()) @ axes.T).to(covariance)
