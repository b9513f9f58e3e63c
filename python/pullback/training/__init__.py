"""Training transcoders and measuring them: the step, the trainer over a model, a cache or given activations, the
evaluation."""

from pullback.training.cache import cache_activations
from pullback.training.cached import CachedActivations
from pullback.training.config import TrainConfig
from pullback.training.documents import Documents
from pullback.training.evaluation import Report, evaluate
from pullback.training.from_cache import train_on_cache
from pullback.training.loggers import LoggingConfig
from pullback.training.objective import StepStats
from pullback.training.optimizer import Adam, LazyAdam
from pullback.training.recipe import Recipe
from pullback.training.step import TrainingDiverged, TrainStep
from pullback.training.sweep import sweep
from pullback.training.tokenfile import TokenFile
from pullback.training.trainer import train, train_on_activations

__all__ = [
    "Adam",
    "CachedActivations",
    "Documents",
    "LazyAdam",
    "LoggingConfig",
    "Recipe",
    "Report",
    "StepStats",
    "TokenFile",
    "TrainConfig",
    "TrainStep",
    "TrainingDiverged",
    "cache_activations",
    "evaluate",
    "sweep",
    "train",
    "train_on_activations",
    "train_on_cache",
]
