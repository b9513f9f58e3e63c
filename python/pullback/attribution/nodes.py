"""The node table of a graph, and what kinds of nodes there are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

KINDS = ("embedding", "position", "feature", "error", "bias", "own", "logit")
EMBEDDING, POSITION, FEATURE, ERROR, BIAS, OWN, LOGIT = range(len(KINDS))
BIAS_KINDS = ("mlp", "attn")


@dataclass(frozen=True, eq=False)
class Nodes:
    """One entry per node, in this order: embeddings, positions, features, errors, biases, own leaves, logits.

    kind: index into KINDS. layer: -1 for embeddings and positions, n_layers for logits; an own leaf has its target's.
    feature: feature id; vocabulary id of embeddings and logits; index into BIAS_KINDS of biases; target node of own
    leaves; -1 else. activation: z, logit probability, error norm, 1 for the rest. preactivation: h, or the demeaned
    logit; nan for the rest.
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
