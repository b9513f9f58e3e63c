"""Studies from end to end: a behaviour of a model, what carries it, and whether ablating that removes it."""

from pullback.studies.behaviours import BEHAVIOURS, Brackets, GreaterThan, IndirectObjects, Induction, Years
from pullback.studies.check import Check, Split, causal_check, split
from pullback.studies.dictionaries import Dictionaries
from pullback.studies.prompts import Prompts, Question, padded
from pullback.studies.run import Options, run_study
from pullback.studies.shares import Shares, direct_shares, graph_of, token_shares
from pullback.studies.thresholds import Threshold, thresholds
from pullback.studies.years import YearCurve, year_curve

__all__ = [
    "BEHAVIOURS",
    "Brackets",
    "Check",
    "Dictionaries",
    "GreaterThan",
    "IndirectObjects",
    "Induction",
    "Options",
    "Prompts",
    "Question",
    "Shares",
    "Split",
    "Threshold",
    "YearCurve",
    "Years",
    "causal_check",
    "direct_shares",
    "graph_of",
    "padded",
    "run_study",
    "split",
    "thresholds",
    "token_shares",
    "year_curve",
]
