"""The graph of heads and MLPs, which needs no transcoder: scores of its edges by several methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pullback.causal.edges.methods import EDGE_METHODS, Pairs
from pullback.lens import as_lens
from pullback.lens.tokens import check_ids

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EDGE_METHODS", "EdgeScores", "edge_scores"]


@dataclass(frozen=True)
class EdgeScores:
    """edges: (source, target) names; scores: {method: (n_edges)}."""

    edges: list[tuple[str, str]]
    scores: dict[str, Tensor]

    def to_pandas(self) -> pd.DataFrame:
        """A row for each edge: source, target, and a column for each method."""
        import pandas as pd

        sources, targets = zip(*self.edges, strict=True)
        columns = {name: scores.cpu().numpy() for name, scores in self.scores.items()}
        return pd.DataFrame({"source": sources, "target": targets, **columns})


def edge_scores(
    model: Any,
    clean: Tensor,
    corrupted: Tensor,
    target: Tensor,
    other: Tensor,
    *,
    methods: Sequence[str] = ("eap_ig_inputs",),
    steps: int = 5,
    batch_size: int = 64,
) -> EdgeScores:
    """Edges from the input, heads (`a0.h1`) and MLPs (`m0`) to what reads them: a head's query, key or value
    (`a1.h0<q>`; of grouped heads, a key/value head's), an MLP, the logits.

    A score is by how much logit[target] - logit[other] falls where the edge alone carries what it carries on the
    corrupted prompt, mean over pairs: `exact` by a pass for each edge; `eap`, `eap_ig_inputs`, `eap_ig_activations` and
    `clean_corrupted` from gradients; `ifr` is another thing, a share of what each target reads on the clean prompts.

    Args:
        clean, corrupted: (N, T) token ids of one length. target, other: (N) token ids.
        steps: of the path between both, for eap_ig_*.
        batch_size: prompts that run together in `exact`.

    Raises:
        ValueError: an unknown method, shapes that do not fit, token ids that the model cannot read, steps or batch_size
            below 1.
    """
    lens = as_lens(model)
    methods = list(methods)
    if unknown := [m for m in methods if m not in EDGE_METHODS]:
        raise ValueError(f"edge_scores: there are the methods {', '.join(EDGE_METHODS)}, not {', '.join(unknown)}")
    if clean.ndim != 2 or clean.shape != corrupted.shape or not target.shape == other.shape == clean.shape[:1]:
        shapes = ", ".join(str(list(t.shape)) for t in (clean, corrupted, target, other))
        raise ValueError(f"edge_scores: clean and corrupted must be (N, T) alike, target and other (N); got {shapes}")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"edge_scores: steps and batch_size must be at least 1, got {steps}, {batch_size}")
    check_ids(lens, clean, "clean")
    check_ids(lens, corrupted, "corrupted")
    check_ids(lens, target[:, None], "target")
    check_ids(lens, other[:, None], "other")
    moved = (t.to(lens.device) for t in (clean, corrupted, target, other))
    pairs = Pairs(lens, *moved, steps=steps, batch_size=batch_size)
    return EdgeScores(pairs.parts.edges(), {m: EDGE_METHODS[m](pairs).detach() for m in methods})
