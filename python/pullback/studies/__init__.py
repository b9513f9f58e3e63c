"""Studies from end to end: a behaviour of a model, what carries it, and whether ablating that removes it."""

from pullback.studies.behaviours import BEHAVIOURS, Brackets, GreaterThan, IndirectObjects, Induction, Years
from pullback.studies.check import Check, Split, causal_check, split
from pullback.studies.circuits import feature_shares, head_shares, margin_circuit, only, typical
from pullback.studies.control import Removal, removal
from pullback.studies.dictionaries import Dictionaries
from pullback.studies.features import words
from pullback.studies.prompts import Prompts, Question, padded
from pullback.studies.run import Options, run_study
from pullback.studies.shares import Shares, curves_of, direct_shares, graph_of, token_shares
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
    "Removal",
    "Shares",
    "Split",
    "Threshold",
    "YearCurve",
    "Years",
    "causal_check",
    "curves_of",
    "direct_shares",
    "feature_shares",
    "graph_of",
    "head_shares",
    "margin_circuit",
    "only",
    "padded",
    "removal",
    "run_study",
    "split",
    "thresholds",
    "token_shares",
    "typical",
    "words",
    "year_curve",
]
