"""The nodes of paths: those of attribution graphs, and the ways through attention and skip connections."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from typing_extensions import Self

from pullback.attribution import nodes as k
from pullback.attribution.names import node_id

KINDS = (*k.KINDS, "head", "skip", "pruned")
HEAD, SKIP, PRUNED = range(len(k.KINDS), len(KINDS))


class Columns:
    """Of a dataclass whose fields are tensors with one row for each of n things."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # pyright: ignore[reportArgumentType]

    def __getitem__(self, which: Tensor | slice) -> Self:
        return type(self)(*(column[which] for column in self.columns()))

    def columns(self) -> list[Tensor]:
        return [getattr(self, f.name) for f in fields(self)]  # pyright: ignore[reportArgumentType]

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        return cls(*(torch.cat(columns) for columns in zip(*(part.columns() for part in parts), strict=True)))


@dataclass(frozen=True, eq=False)
class PathNodes(Columns):
    """n nodes.

    kind: index into KINDS. layer: -1 for embeddings and positions. index: feature; head; vocabulary id of embeddings
    and logits; index into BIAS_KINDS; an own leaf's is its target's; -1 else. pos: of a head, where it reads; -1 where
    positions are summed.
    """

    kind: Tensor
    layer: Tensor
    index: Tensor
    pos: Tensor

    def ids(self, root: PathNodes) -> list[str]:
        """Names as in attribution graphs (`node_ids`); heads `{l}_head_{h}_{pos}`, skip paths `{l}_skip_{pos}`."""
        (target,) = _places(root)
        return [_name(place, target) for place in _places(self)]

    def keys(self) -> Tensor:
        """A number for every node, the same where nodes are the same, (n) int64."""
        key = self.kind.clone()
        for column in (self.layer, self.pos, self.index):
            key = key * (int(column.max()) + 2) + column + 1
        return key


Place = tuple[int, int, int, int]


def _places(nodes: PathNodes) -> list[Place]:
    return list(zip(*(column.tolist() for column in nodes.columns()), strict=True))


def _name(node: Place, root: Place) -> str:
    kind, layer, index, pos = node
    if kind == HEAD:
        return f"{layer}_head_{index}_{pos}"
    if kind == SKIP:
        return f"{layer}_skip_{pos}"
    if kind == k.OWN:
        target = root if node[1:] == root[1:] else (k.FEATURE, layer, index, pos)
        return f"own_{_name(target, root)}"
    return node_id(kind, layer, pos, index)
