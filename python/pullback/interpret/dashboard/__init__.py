"""Dashboards of features, and blind case studies."""

from pullback.interpret.dashboard.blind import BlindStudy
from pullback.interpret.dashboard.board import Dashboard, dashboard
from pullback.interpret.dashboard.live import live_features
from pullback.interpret.dashboard.published import BLIND_CASE_STUDIES

__all__ = ["BLIND_CASE_STUDIES", "BlindStudy", "Dashboard", "dashboard", "live_features"]
