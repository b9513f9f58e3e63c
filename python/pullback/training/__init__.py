"""Training transcoders and measuring them: the step, the trainer over a model or over given activations, the
evaluation."""

from pullback.training.config import TrainConfig
from pullback.training.evaluation import Report, evaluate
from pullback.training.objective import StepStats
from pullback.training.optimizer import Adam, LazyAdam
from pullback.training.recipe import Recipe
from pullback.training.step import TrainingDiverged, TrainStep
from pullback.training.trainer import train, train_on_activations

__all__ = [
    "Adam",
    "LazyAdam",
    "Recipe",
    "Report",
    "StepStats",
    "TrainConfig",
    "TrainStep",
    "TrainingDiverged",
    "evaluate",
    "train",
    "train_on_activations",
]
