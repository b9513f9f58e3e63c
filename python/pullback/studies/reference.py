"""Published figures of greater-than in GPT-2 small, to measure against.

Source: Dunefsky, Chlenski and Nanda 2024, "Transcoders Find Interpretable LLM Feature Circuits" (arXiv 2406.11944), and
the greater-than notebook of its repository (jacobdunefsky/transcoder_circuits). The figures hold for GPT-2 small and
the transcoders published with the paper, the input of which is `ln2.hook_normalized`. Those of sweeps and of replaced
layers are in `pullback.training.sweep.published`, those of blind case studies in `pullback.interpret`.
"""

from __future__ import annotations

from pathlib import Path

MODEL, LAYERS, WIDTH, D_SAE, LAYER = "gpt2", 12, 768, 24576, 10

GREATER_THAN: dict[str, float] = {
    "probability difference, the model": 0.88294,
    "with all features of MLP 10": 0.79780,
    "without feature 5315": 0.84531,
    "MLP 10 removed": 0.63,  # read off a figure
    "20 features": 0.8435,
    "21 features": 0.8433,
    "22 features": 0.8314,
    "23 features": 0.7852,
    "24 features": 0.7862,
    "14 features": 0.84,  # read off a figure
    "20 neurons": 0.80,  # read off a figure
}
TOP_PATHS: dict[str, float] = {
    "1735: feature 21238 of MLP 10": 16.0,
    "1735: head 9.1 from the year": 6.9,
    "1735: feature 9647 of MLP 10": 5.9,
    "1735: feature 12072 of MLP 9": 5.6,
    "1735: head 7.10 from the year": 5.4,
    "1735: feature 10437 of MLP 10": 3.7,
    "1527: feature 21238 of MLP 10": 11.0,
    "1527: feature 10437 of MLP 10": 11.0,
    "1527: feature 11883 of MLP 9": 5.3,
    "1527: feature 12072 of MLP 9": 5.2,
    "1527: head 9.1 from the year": 3.3,
}


def is_published(model_name: str, n_layers: int, d_model: int, d_sae: int) -> bool:
    """Whether the figures can be of this model and set: by name and sizes, for what weights are cannot be known."""
    name = Path(model_name).name.lower()
    return name.startswith(MODEL) and (n_layers, d_model, d_sae) == (LAYERS, WIDTH, D_SAE)


def beside(measured: dict[str, float]) -> list[tuple[str, float, float | None]]:
    """(what, published, measured) of greater-than; None where this run has no such figure."""
    return [(what, published, measured.get(what)) for what, published in GREATER_THAN.items()]
