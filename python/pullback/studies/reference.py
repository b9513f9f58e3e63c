"""Published figures of greater-than in GPT-2 small, to measure against.

Source: Dunefsky, Chlenski and Nanda 2024, "Transcoders Find Interpretable LLM Feature Circuits" (arXiv 2406.11944), and
the notebooks of its repository (jacobdunefsky/transcoder_circuits: walkthrough, greater-than, sweep). The figures hold
for GPT-2 small and the transcoders published with the paper, the input of which is `ln2.hook_normalized`.
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
WALKTHROUGH: dict[str, float] = {
    "cross-entropy, the model": 3.5928,
    "MLPs 0 to 10 replaced": 4.2337,
    "MLPs 1 to 10 replaced": 4.0624,
    "MLPs 0 to 10 at zero": 10.9406,
    "KL, MLPs 0 to 10 replaced": 0.6684,
}
SWEEP: dict[str, list[tuple[float, float, float]]] = {
    # Pythia-410M, layer 15: L1 coefficient, L0, cross-entropy
    "autoencoder": [(4e-5, 505.3, 3.3369), (7e-5, 109.9, 3.3512), (8.5e-5, 55.07, 3.3596), (1e-4, 31.5, 3.3678)],
    "transcoder": [
        (2.5e-5, 203.8, 3.3412),
        (3e-5, 148.2, 3.3441),
        (4e-5, 82.7, 3.3491),
        (5.5e-5, 44.04, 3.3549),
        (7e-5, 27.45, 3.3682),
    ],
}
CITATIONS: dict[str, float] = {
    # Feature 355 of MLP 8, a semicolon in a citation; and feature 235, "caught"
    "8_355 on '(Leisman, 1976;'": 12.484,
    "8_355 without the comma": 12.13,
    "8_235 on 'He was caught'": 19.97,
    "8_235 on 'He caught the ball'": 0.8145,
}


def is_published(model_name: str, n_layers: int, d_model: int, d_sae: int) -> bool:
    """Whether the figures can be of this model and set: by name and sizes, for what weights are cannot be known."""
    name = Path(model_name).name.lower()
    return name.startswith(MODEL) and (n_layers, d_model, d_sae) == (LAYERS, WIDTH, D_SAE)


def beside(measured: dict[str, float]) -> list[tuple[str, float, float | None]]:
    """(what, published, measured) of greater-than; None where this run has no such figure."""
    return [(what, published, measured.get(what)) for what, published in GREATER_THAN.items()]
