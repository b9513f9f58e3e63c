"""What features mean: cards of every feature from a corpus, dashboards, blind studies and blind ratings."""

from pullback.interpret.dashboard import BLIND_CASE_STUDIES, BlindStudy, Dashboard, dashboard, live_features
from pullback.interpret.features import FeaturePack, write_feature_pack
from pullback.interpret.sheet import PUBLISHED_RATINGS, SheetScore, make_sheet, score_sheet

__all__ = [
    "BLIND_CASE_STUDIES",
    "BlindStudy",
    "Dashboard",
    "FeaturePack",
    "PUBLISHED_RATINGS",
    "SheetScore",
    "dashboard",
    "live_features",
    "make_sheet",
    "score_sheet",
    "write_feature_pack",
]
