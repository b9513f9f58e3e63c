"""Scores of the same nodes by several methods, and how far their rankings agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pullback._util.statistics import spearman
from pullback.attribution import Graph
from pullback.attribution.local import local_model
from pullback.causal.ablation import Ablation
from pullback.causal.margin import Margin, margin_of
from pullback.causal.nodes import NodeSet
from pullback.causal.rankings import graph_scores
from pullback.causal.scores.methods import METHODS, Problem
from pullback.causal.scores.patches import Patches
from pullback.lens import as_lens
from pullback.lens.freeze import Freeze, must_hold
from pullback.transcoders import LayeredDictionary

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METHODS", "NodeScores", "node_scores"]


@dataclass(frozen=True)
class NodeScores:
    """{method: (n)}: what the margin loses without a node, as each method has it."""

    nodes: NodeSet
    scores: dict[str, Tensor]

    def to_pandas(self) -> pd.DataFrame:
        """A row for each node: id, kind, layer, pos, feature, and a column for each method."""
        import pandas as pd

        columns = {name: getattr(self.nodes, name).numpy() for name in ("layer", "pos", "feature")}
        named = {"id": self.nodes.ids(), "kind": self.nodes.kinds()}
        return pd.DataFrame({**named, **columns, **{m: s.numpy() for m, s in self.scores.items()}})

    def correlations(self) -> pd.DataFrame:
        """Spearman's rank correlation of every two methods."""
        import pandas as pd

        table = {a: {b: spearman(self.scores[a], self.scores[b]) for b in self.scores} for a in self.scores}
        return pd.DataFrame(table)


def node_scores(
    model: Any,
    sets: LayeredDictionary,
    graph: Graph,
    *,
    methods: Sequence[str] = tuple(METHODS),
    ablation: Ablation | None = None,
    margin: Margin | None = None,
    steps: int = 5,
    freeze: str | None = None,
    batch_size: int = 64,
    attention_saes: LayeredDictionary | None = None,
    strict: bool = True,
) -> NodeScores:
    """Scores of a graph's features and errors: its own total effects ("graph"), and by each of the methods

    * exact: activation patching, a pass for each node
    * eap: gradients of the clean run
    * eap_ig_inputs: gradients averaged over `steps` embeddings on the way from ablated to clean; of an ablation that
      is no prompt, from zero embeddings, or the mean of the corpus
    * eap_ig_activations: averaged over `steps` values of all nodes of one MLP or attention output, output by output
    * relp: gradients through constant norms, patterns and slopes.

    Args:
        ablation: what ablated nodes become; None: zero. The graph's own effects are those of zero.
        margin: by default between the two likeliest tokens of the graph.
        freeze: "attention" holds patterns at the clean run's, None (default) nothing.
        batch_size: copies of the prompt that run together.
        attention_saes: those that the graph was made with; an ablation needs them, too.

    Raises:
        ValueError: an unknown method, a graph or an ablation of other prompts or transcoders, steps or batch_size
            below 1.
    """
    methods = list(methods)
    if unknown := [m for m in methods if m not in METHODS]:
        raise ValueError(f"node_scores: there are the methods {', '.join(METHODS)}, not {', '.join(unknown)}")
    if steps < 1 or batch_size < 1 or freeze == "all":
        raise ValueError(
            f"node_scores: steps and batch_size must be at least 1, freeze 'attention' or None; got {steps}, "
            f"{batch_size}, {freeze!r}"
        )
    lens = as_lens(model)
    tokens = lens.to_tokens(graph.prompt_tokens())
    local = local_model(lens, sets, tokens, strict=strict, attention_saes=attention_saes)
    if ablation is None:
        ablation = Ablation.zero(lens, local.sets, attention_saes=local.attention.saes)
    hold = Freeze.of(lens.n_layers, freeze)
    if freeze is not None:
        must_hold(lens, local.trace, freeze)
    nodes = NodeSet.of(graph)
    margin = margin_of(graph) if margin is None else margin
    problem = Problem(lens, local, Patches(local, nodes, ablation), ablation, margin, hold, steps, batch_size)
    scores = {"graph": graph_scores(graph, margin)} | {m: METHODS[m](problem).cpu() for m in methods}
    return NodeScores(nodes, scores)
