"""Finding a Chromium-like browser and starting it quietly, for checks of pages."""

from __future__ import annotations

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    # Frames must share the page's virtual clock.
    "--disable-features=IsolateSandboxedIframes",
)


def binary() -> str | None:
    """The path of a Chromium-like browser, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)
