"""What features mean: cards of every feature from a corpus, dashboards, blind case studies."""

from pullback.interpret.dashboard import BLIND_CASE_STUDIES, BlindStudy, Dashboard, dashboard, live_features
from pullback.interpret.features import FeaturePack, write_feature_pack

__all__ = [
    "BLIND_CASE_STUDIES",
    "BlindStudy",
    "Dashboard",
    "FeaturePack",
    "dashboard",
    "live_features",
    "write_feature_pack",
]
