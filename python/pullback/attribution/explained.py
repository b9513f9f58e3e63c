"""From what is asked of a graph to functionals, nodes and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.asked import Asked, as_targets
from pullback.attribution.layout import WRITTEN
from pullback.attribution.local import LocalModel
from pullback.attribution.reader import Entry, Reader
from pullback.attribution.targets import Targets, feature_batch, joined
from pullback.lens import Lens


@dataclass(frozen=True)
class Explained:
    """What a graph explains. Active features among it are sources as well; all else is appended to the node table."""

    targets: Targets  # (K) that are appended
    nodes: k.Nodes  # (K)
    weights: Tensor  # (K)
    labels: list[str]  # K
    features: Tensor  # (M) places of explained features among the active ones
    feature_weights: Tensor  # (M)

    def __len__(self) -> int:
        return len(self.targets)

    def labels_of(self, kind: int) -> list[str]:
        return [label for label, own in zip(self.labels, self.nodes.kind.tolist(), strict=True) if own == kind]

    def reach(self, local: LocalModel) -> Tensor:
        """Places of the active features that something explained can depend on, ascending: those that write below it,
        at positions up to its own; and the explained ones."""
        layout = local.layout
        first = layout.all_features.start
        parts = [self.features]
        what = self.targets
        if len(self.features):
            what = joined([what, feature_batch(local.stack, self.features.to(local.trace.tokens.device))])
        depths, positions = what.depth.tolist(), what.pos.tolist()
        for (kind, layer), acts in local.active.items():
            written = WRITTEN[kind](layer)
            furthest = max((pos for pos, depth in zip(positions, depths, strict=True) if depth > written), default=-1)
            start = layout.of_kind(kind)[layer].start - first
            parts.append(torch.arange(start, start + int(acts.indptr[furthest + 1])))
        return torch.cat(parts).unique() if len(self.features) else torch.cat(parts)


def explained(
    lens: Lens,
    local: LocalModel,
    asked: Asked = None,
    *,
    position: int = -1,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
) -> Explained:
    """Read `asked` against one prompt. None: the fewest top tokens at `position` that reach `desired_logit_prob`, at
    most `max_n_logits`.

    Raises ValueError for what this model, its transcoders or the prompt do not have, and for a target given twice.
    """
    reader = Reader(lens, local, position)
    targets = reader.salient(max_n_logits, desired_logit_prob) if asked is None else as_targets(asked)
    entries: list[Entry] = []
    places: dict[int, float] = {}
    for target in targets:
        found = reader.read(target)
        if isinstance(found, Entry):
            entries.append(found)
        elif found in places:
            raise ValueError(f"attribute: attribution_targets names a feature twice: {target!r}")
        else:
            places[found] = target.weight or 1.0
    _must_differ(entries)
    dtype = local.trace.embed.dtype

    def column(values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor([v.item() if isinstance(v, Tensor) else v for v in values], dtype=dtype)

    together = joined([_no_targets(local), *(e.target for e in entries)])
    return Explained(
        targets=together,
        nodes=k.Nodes(
            kind=column([e.kind for e in entries], torch.int8),
            layer=together.layer.to("cpu", torch.int32),
            pos=together.pos.to("cpu", torch.int32),
            feature=column([e.feature for e in entries], torch.long),
            activation=column([e.activation for e in entries], dtype),
            preactivation=column([e.value for e in entries], dtype),
        ),
        weights=column([e.weight for e in entries], dtype),
        labels=[e.label for e in entries],
        features=column(list(places), torch.long),
        feature_weights=column(list(places.values()), dtype),
    )


def _no_targets(local: LocalModel) -> Targets:
    none = local.trace.tokens[:0]
    embed = local.trace.embed
    return Targets(layer=none, site=none, pos=none, row=none, own=embed[:0, 0], table=embed[:0])


def _must_differ(entries: list[Entry]) -> None:
    tokens = [(e.feature, int(e.target.pos)) for e in entries if e.kind == k.LOGIT]
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"attribute: attribution_targets names a token twice: ids {[token for token, _ in tokens]}")
    features = [(e.kind, int(e.target.layer), int(e.target.pos), e.feature) for e in entries if e.kind in k.FEATURES]
    if len(set(features)) < len(features):
        raise ValueError(f"attribute: attribution_targets names a feature twice: (layer, position, id) {features}")
