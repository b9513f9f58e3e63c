"""Causal tests: set features, ablate, steer and swap them, score nodes, and see how far a graph foretells it all."""

from pullback._util.statistics import between_group_share
from pullback.causal.ablation import Ablation, ablate
from pullback.causal.agreement import Agreement, RunAgreement, agreement
from pullback.causal.circuit import CircuitRunner
from pullback.causal.curves import Areas, Curve, Curves, faithfulness_curves
from pullback.causal.edges import EdgeScores, edge_scores
from pullback.causal.effects import predicted, recovery, total_effects
from pullback.causal.faithful import circuit_faithfulness
from pullback.causal.generate import Generated, generate
from pullback.causal.interchange import Swap, interchange, swap_scores
from pullback.causal.intervene import Intervened, intervene, run_interventions
from pullback.causal.margin import Margin, margin_of
from pullback.causal.mib import auroc, cmd, cpr
from pullback.causal.nodes import NodeSet
from pullback.causal.places import Supernode
from pullback.causal.rankings import Rankings, graph_scores, hierarchical_scores
from pullback.causal.scores import NodeScores, node_scores
from pullback.causal.steer import Steered, steer

__all__ = [
    "Ablation",
    "Agreement",
    "Areas",
    "CircuitRunner",
    "Curve",
    "Curves",
    "EdgeScores",
    "Generated",
    "Intervened",
    "Margin",
    "NodeScores",
    "NodeSet",
    "Rankings",
    "RunAgreement",
    "Steered",
    "Supernode",
    "Swap",
    "ablate",
    "agreement",
    "auroc",
    "between_group_share",
    "circuit_faithfulness",
    "cmd",
    "cpr",
    "edge_scores",
    "faithfulness_curves",
    "generate",
    "graph_scores",
    "hierarchical_scores",
    "interchange",
    "intervene",
    "margin_of",
    "node_scores",
    "predicted",
    "recovery",
    "run_interventions",
    "steer",
    "swap_scores",
    "total_effects",
]
