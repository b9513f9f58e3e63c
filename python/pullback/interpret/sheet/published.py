"""Published ratings (Dunefsky et al. 2024, section 4.2): 50 live features each of a transcoder and of an autoencoder of
the MLP's input, Pythia-410M, layer 15. `context_free` counts those that fire on a token whatever stands before it."""

from __future__ import annotations

from typing import Any

PUBLISHED_RATINGS: dict[str, dict[str, Any]] = {
    "transcoder": {
        "interpretable": 41,
        "maybe": 8,
        "uninterpretable": 1,
        "context_free": 6,
        "live": 9381,
        "l0": 44.04,
        "ce": 3.35,
    },
    "sae": {
        "interpretable": 38,
        "maybe": 8,
        "uninterpretable": 4,
        "context_free": 16,
        "live": 10403,
        "l0": 47.85,
        "ce": 3.36,
    },
}
