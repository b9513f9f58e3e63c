"""Whose features are easier to understand, of two dictionaries: rated without knowing which is which."""

from pullback.interpret.sheet.make import make_sheet
from pullback.interpret.sheet.published import PUBLISHED_RATINGS
from pullback.interpret.sheet.score import SheetScore, score_sheet

__all__ = ["PUBLISHED_RATINGS", "SheetScore", "make_sheet", "score_sheet"]
