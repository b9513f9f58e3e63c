"""QK attributions: why a head looks where it looks, as pairs of what the query and the key are made of (Kamath et al.
2025; Ge et al. 2024; METHODS 2.6, 5.2)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.attribution.attention.components import COMPONENT_KINDS, components
from pullback.attribution.local import LocalModel, local_model
from pullback.lens import Lens, as_lens
from pullback.lens.scores import HeadScores, Projection, head_scores
from pullback.ops import top_pullbacks
from pullback.transcoders import LayeredDictionary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class ScoreSide:
    """What a query, or a key, is made of: n parts by node ids, and what each adds to it, (n, d_head).

    Besides the parts of the stream there are `own_norm` and `own_bias`: what ln1's bias adds, and b_Q or b_K.
    """

    names: list[str]
    kinds: list[str]
    vectors: Tensor

    def of_kinds(self, kinds: Iterable[str] | None) -> Tensor:
        """Places of parts of these kinds, (m)."""
        wanted = set(COMPONENT_KINDS) if kinds is None else set(kinds)
        if not wanted <= set(COMPONENT_KINDS):
            raise ValueError(f"kinds must be among {', '.join(COMPONENT_KINDS)}, got {sorted(wanted)}")
        return torch.tensor([n for n, kind in enumerate(self.kinds) if kind in wanted], dtype=torch.long)


@dataclass(frozen=True, eq=False)
class QKAttribution:
    """A score of one head as a sum over pairs (query part, key part): score = sum_ij <query_i, key_j> (O13).

    Scores are before the soft cap, if there is one. With `against`, everything is about score - score_against, and the
    key's parts are those at both positions, the latter with a minus.
    """

    layer: int
    head: int
    query_pos: int
    key_pos: int
    against: int | None
    query: ScoreSide  # scaled by the score's scale
    key: ScoreSide
    score: float
    """Of the model: from its own queries and keys."""
    capped: float
    """The score behind the soft cap; of `against`, the difference behind it."""
    pattern: float
    """How much the query attends to the key."""

    def __repr__(self) -> str:
        other = "" if self.against is None else f" against {self.against}"
        return (
            f"QKAttribution(layer {self.layer}, head {self.head}: {self.query_pos} -> {self.key_pos}{other}, score "
            f"{self.score:.4g} of {len(self.query.names)} x {len(self.key.names)} pairs)"
        )

    def check(self) -> float:
        """|score - sum of pairs| / max(1, sum of the sizes of what either side adds): 0 if exact."""
        sums = self.query_marginals()
        return abs(self.score - float(sums.sum())) / max(1.0, float(sums.abs().sum()))

    def query_marginals(self) -> Tensor:
        """What each part of the query adds to the score, with the whole key, (n_query)."""
        return self.query.vectors @ self.key.vectors.sum(0)

    def key_marginals(self) -> Tensor:
        """What each part of the key adds to the score, with the whole query, (n_key)."""
        return self.key.vectors @ self.query.vectors.sum(0)

    def pair(self, query: str, key: str) -> float:
        """What one pair adds. Raises ValueError for a part that there is not."""
        rows = []
        for side, name in ((self.query, query), (self.key, key)):
            if name not in side.names:
                raise ValueError(
                    f"qk_attribution: there is no part '{name}'; there are {', '.join(side.names[:5])}, ..."
                )
            rows.append(side.vectors[side.names.index(name)])
        return float(rows[0] @ rows[1])

    def top_pairs(self, n: int = 20, kinds: Iterable[str] | None = None) -> list[tuple[str, str, float]]:
        """(query part, key part, what they add) of the n largest in absolute value, among parts of `kinds`.

        Pairs are formed a block at a time and the best kept: memory does not grow with their number.
        """
        kinds = None if kinds is None else list(kinds)
        i, j = self.query.of_kinds(kinds), self.key.of_kinds(kinds)
        if n < 1 or not len(i) or not len(j):
            raise ValueError(f"qk_attribution: there are no {n} pairs of kinds {kinds}")
        k = min(n, len(j))
        best, keys = top_pullbacks(self.query.vectors[i], self.key.vectors[j], k, absolute=True)
        order = best.flatten().abs().argsort(descending=True, stable=True)[:n].tolist()
        return [
            (self.query.names[int(i[place // k])], self.key.names[int(j[keys.flatten()[place]])], value)
            for place, value in zip(order, best.flatten()[order].tolist(), strict=True)
        ]

    def to_pandas(self, n: int = 20) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(parts, pairs): columns side, name, kind, marginal, the largest first; and query, key, value of the n largest
        pairs."""
        import pandas as pd

        parts = pd.DataFrame(
            {
                "side": ["query"] * len(self.query.names) + ["key"] * len(self.key.names),
                "name": self.query.names + self.key.names,
                "kind": self.query.kinds + self.key.kinds,
                "marginal": torch.cat([self.query_marginals(), self.key_marginals()]).numpy(),
            }
        )
        parts = parts.sort_values("marginal", key=abs, ascending=False, kind="stable", ignore_index=True)
        return parts, pd.DataFrame(self.top_pairs(n), columns=["query", "key", "value"])


@torch.no_grad()
def qk_attribution(
    model: Any,
    sets: LayeredDictionary,
    prompt: str | Sequence[int] | Tensor,
    layer: int,
    head: int,
    query_pos: int,
    key_pos: int,
    *,
    against: int | None = None,
    attention_saes: LayeredDictionary | None = None,
    strict: bool = True,
) -> QKAttribution:
    """A head's score between two positions, split over pairs of what the stream is made of at each.

    Parts are the features at the position (also of cross-layer transcoders), errors, embedding, position, each head of
    the layers below, biases. Norms are frozen, ln1 and those of queries and keys; rotary positions belong to the form.

    Args:
        model: a TransformerLens model, or a `Lens` on one.
        sets: transcoders, for any subset of its layers; a layer without one is an error.
        prompt: a string or token ids (T,).
        layer, head, query_pos, key_pos: the score. Positions may count from the end.
        against: another key position: then the difference of the two scores is split, which is what decides between
            them (a part that both keys share falls out).
        attention_saes: autoencoders of attention outputs: their features and errors are parts, instead of the heads of
            their layers.
        strict: False accepts transcoders of a fine-tuned sibling.

    Raises:
        ValueError: as `attribute`; no such layer, head or position; a key behind the query; attention that is no
            softmax of such scores.
    """
    lens = as_lens(model)
    local = local_model(lens, sets, lens.to_tokens(prompt), strict=strict, attention_saes=attention_saes)
    return qk_of(lens, local, layer, head, query_pos, key_pos, against=against)


def qk_of(
    lens: Lens, local: LocalModel, layer: int, head: int, query_pos: int, key_pos: int, *, against: int | None = None
) -> QKAttribution:
    """`qk_attribution` of a prompt that has been read: for many scores of one."""
    layer, head = _within("layer", layer, local.n_layers), _within("head", head, lens.n_heads)
    t, s = (_within(name, p, local.n_pos) for name, p in (("query_pos", query_pos), ("key_pos", key_pos)))
    other = None if against is None else _within("against", against, local.n_pos)
    for name, p in (("key_pos", s), ("against", other)):
        if p is not None and p > t:
            raise ValueError(f"qk_attribution: {name} {p} lies behind query_pos {t}, which does not see it")
    if other == s:
        raise ValueError(f"qk_attribution: against is key_pos itself, {s}; give another position, or None")
    scores = head_scores(lens, local.trace, layer, head)
    query, key = _side(local, scores, scores.query, layer, t), _side(local, scores, scores.key, layer, s)
    row = scores.scale * scores.whole(scores.query)[t] @ scores.whole(scores.key).T
    capped = scores.capped(row)
    if other is not None:
        rival = _side(local, scores, scores.key, layer, other)
        key = ScoreSide(key.names + rival.names, key.kinds + rival.kinds, torch.cat([key.vectors, rival.vectors.neg()]))
        row, capped = row - row[other], capped - capped[other]
    return QKAttribution(
        layer=layer,
        head=head,
        query_pos=t,
        key_pos=s,
        against=other,
        query=ScoreSide(query.names, query.kinds, scores.scale * query.vectors),
        key=key,
        score=float(row[s]),
        capped=float(capped[s]),
        pattern=float(local.trace.layers[layer].pattern[head, t, s]),
    )


def _side(local: LocalModel, scores: HeadScores, side: Projection, layer: int, pos: int) -> ScoreSide:
    """The parts of the stream and the constants, as one side reads them at one position."""
    parts = components(local, layer, pos)
    at = torch.tensor([pos], device=parts.vectors.device)
    vectors = scores.read(side, parts.vectors, at.expand(len(parts.names)))
    constants = torch.cat([scores.norm_bias(side, at), side.constant(at)])
    names = [*parts.names, f"own_norm_{pos}", f"own_bias_{pos}"]
    return ScoreSide(names, [*parts.kinds, "own", "own"], torch.cat([vectors, constants]).cpu())


def _within(name: str, value: int, n: int) -> int:
    index = operator.index(value)
    if not -n <= index < n:
        raise ValueError(f"qk_attribution: {name} must be in 0..{n - 1}, got {index}")
    return index % n
