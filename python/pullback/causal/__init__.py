"""Causal tests: set features, swap them between prompts, and see whether the answer follows."""

from pullback._util.statistics import between_group_share
from pullback.causal.interchange import Swap, interchange, swap_scores
from pullback.causal.intervene import Intervened, intervene, run_interventions

__all__ = [
    "Intervened",
    "Swap",
    "between_group_share",
    "interchange",
    "intervene",
    "run_interventions",
    "swap_scores",
]
