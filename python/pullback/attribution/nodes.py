"""The node table of a graph, and what kinds of nodes there are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

KINDS = ("embedding", "position", "feature", "error", "bias", "own", "logit", "direction")
EMBEDDING, POSITION, FEATURE, ERROR, BIAS, OWN, LOGIT, DIRECTION = range(len(KINDS))
BIAS_KINDS = ("mlp", "attn")


@dataclass(frozen=True, eq=False)
class Nodes:
    """One entry per node, in this order: embeddings, positions, active features, errors, biases, own leaves, and what
    is explained besides active features (logits, directions, features that are not active) in the order asked.

    kind: index into KINDS. layer: -1 for embeddings and positions, n_layers for logits; a direction's is the number of
    MLPs below its site; an own leaf has its target's. feature: feature id; vocabulary id of embeddings and logits;
    index into BIAS_KINDS of biases; running number of directions; target node of own leaves; -1 else. activation: z,
    logit probability, error norm, 1 for the rest. preactivation: h, the demeaned logit, or the value of a direction;
    nan for the rest.
    """

    kind: Tensor  # (n) int8
    layer: Tensor  # (n) int32
    pos: Tensor  # (n) int32
    feature: Tensor  # (n) int64
    activation: Tensor  # (n)
    preactivation: Tensor  # (n)

    def __len__(self) -> int:
        return self.kind.shape[0]

    def __getitem__(self, which: Tensor) -> Nodes:
        return Nodes(*(getattr(self, f)[which] for f in NODE_FIELDS))


NODE_FIELDS = ("kind", "layer", "pos", "feature", "activation", "preactivation")
