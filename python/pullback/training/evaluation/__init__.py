"""How well dictionaries stand in for what they were trained on, layer by layer and in the model."""

from pullback.training.evaluation.evaluate import evaluate
from pullback.training.evaluation.report import Arms, Report

__all__ = ["Arms", "Report", "evaluate"]
