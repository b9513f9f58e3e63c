"""The node table of a graph, and what kinds of nodes there are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.lens.depth import at_attention, at_mlp

KINDS = (
    *("embedding", "position", "feature", "error", "bias", "own", "logit", "direction"),
    *("attention_feature", "attention_error"),
)
EMBEDDING, POSITION, FEATURE, ERROR, BIAS, OWN, LOGIT, DIRECTION, ATTENTION_FEATURE, ATTENTION_ERROR = range(len(KINDS))
IN_ORDER = (
    *(EMBEDDING, POSITION, FEATURE, ATTENTION_FEATURE, ERROR, ATTENTION_ERROR),
    *(BIAS, OWN, LOGIT, DIRECTION),
)
"""Kinds as their nodes stand in a table."""
FEATURES, ERRORS = (FEATURE, ATTENTION_FEATURE), (ERROR, ATTENTION_ERROR)
BIAS_KINDS = ("mlp", "attn")


@dataclass(frozen=True, eq=False)
class Nodes:
    """One entry per node, in this order: embeddings, positions, active features, errors (of MLPs, then of attention,
    both), biases, own leaves, and what is explained besides active features (logits, directions, features that are not
    active) in the order asked.

    kind: index into KINDS; "feature" and "error" are of MLP outputs. layer: -1 for embeddings and positions, n_layers
    for logits; a direction's is the number of MLPs below its site; an own leaf has its target's. feature: feature id;
    vocabulary id of embeddings and logits; index into BIAS_KINDS of biases; running number of directions; target node
    of own leaves; -1 else. activation: z, logit probability, error norm, 1 for the rest. preactivation: h, the demeaned
    logit, or the value of a direction; nan for the rest.
    """

    kind: Tensor  # (n) int8
    layer: Tensor  # (n) int32
    pos: Tensor  # (n) int32
    feature: Tensor  # (n) int64
    activation: Tensor  # (n)
    preactivation: Tensor  # (n)

    def __len__(self) -> int:
        return self.kind.shape[0]

    @property
    def depth(self) -> Tensor:
        """Where features write, and above which explained nodes lie, (n), see `lens.depth`."""
        at_attn = (self.kind == ATTENTION_FEATURE) | (self.kind == ATTENTION_ERROR)
        return torch.where(at_attn, at_attention(self.layer), at_mlp(self.layer))

    def __getitem__(self, which: Tensor) -> Nodes:
        return Nodes(*(getattr(self, f)[which] for f in NODE_FIELDS))


NODE_FIELDS = ("kind", "layer", "pos", "feature", "activation", "preactivation")
