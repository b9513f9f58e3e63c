"""Cross-layer against per-layer transcoders at equal parameters and equal L0 per token: the report's second section."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pullback.attribution import attribute
from pullback.demo import answered
from pullback.training import evaluate, train_on_cache
from pullback.training.sweep.matched import mean_over_layers
from pullback.transcoders import load_transcoders
from pullback.zoo import tinymix
from pullback.zoo.tinymix import tasks

from .measure import EVALUATION_BATCHES, MEASURED_ON, SEEDS, config

AT_K, N_LAYERS = 16, 4
PER_LAYER, CROSS_LAYER = "per-layer", "cross-layer"

# Name, and what it is, of every figure in the section's table.
FIGURES = {
    "n_parameters": "parameters",
    "l0": "L0 per token, all layers",
    "fvu": "FVU, mean over layers",
    "kl": "KL at answers, all layers replaced",
    "ce_recovered": "CE recovered at answers",
    "replacement": "replacement score of graphs",
    "completeness": "completeness score of graphs",
}


def equal_features(per_layer: int, n_layers: int, d_model: int) -> int:
    """Features a layer with which a cross-layer transcoder has as many parameters as per-layer ones with `per_layer`:
    an encoder row and bias each, and a decoder row for every layer from its own on."""
    own = n_layers * (2 * d_model + 1)
    across = n_layers * (d_model + 1) + n_layers * (n_layers + 1) // 2 * d_model
    return round(per_layer * own / across)


def measure(work: Path, path: Path) -> None:
    """Train cross-layer transcoders on the cache of the sweeps in `work`, an arm for every seed of theirs, and write
    the figures of both kinds to `path`. What is trained already is not trained again."""
    model = tinymix.load()
    own = {
        seed: load_transcoders(work / f"seed{seed}" / "sets" / f"transcoder-topk-k{AT_K}-seed{seed}") for seed in SEEDS
    }
    across = {seed: _trained(work, seed, own[seed].d_model) for seed in SEEDS}
    compare(model, {PER_LAYER: list(own.values()), CROSS_LAYER: list(across.values())}, path)


def _trained(work: Path, seed: int, d_model: int) -> Any:
    folder = work / "cross_layer" / f"seed{seed}"
    if not (folder / "config.yaml").exists():
        base = config()
        settings = replace(
            base,
            k=AT_K,
            seed=seed,
            architecture="topk",
            cross_layer=True,
            d_sae=equal_features(base.d_sae, N_LAYERS, d_model),
        )
        train_on_cache(
            work / "cache", settings, output_path=folder, checkpoint_path=folder.with_suffix(".run"), resume=True
        )
    return load_transcoders(folder)


def figures(
    model: Any, dictionary: Any, n_batches: int = EVALUATION_BATCHES, n_answers: int = 128, n_graphs: int = 12
) -> dict[str, float]:
    """The figures of one dictionary, of either kind; `n_answers` prompts of every task."""
    tokens = evaluate(model, dictionary, list(tasks.training_batches(MEASURED_ON, n_batches)))
    answers = evaluate(model, dictionary, answered(MEASURED_ON, n_answers))
    prompts = tasks.two_hop_prompts()[:: max(1, 48 // n_graphs)]
    scores = [attribute(model, dictionary, prompt.prompt).scores() for prompt in prompts]
    return {
        "n_parameters": sum(p.numel() for layer in dictionary.values() for p in layer.parameters()),
        "l0": sum(tokens.l0.values()),
        "fvu": mean_over_layers(tokens.fvu) or 0.0,
        "kl": answers.kl,
        "ce_recovered": answers.ce_recovered,
        "replacement": statistics.fmean(score.replacement for score in scores),
        "completeness": statistics.fmean(score.completeness for score in scores),
    }


def compare(model: Any, by_kind: Mapping[str, Sequence[Any]], path: Path, **less: int) -> None:
    """Measure {kind: a dictionary for every seed} and write {kind: [figures of each]} to `path`."""
    measured = {kind: [figures(model, one, **less) for one in seeds] for kind, seeds in by_kind.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured, indent=1) + "\n")


def section(path: Path) -> list[str]:
    """The second section of the report, as Markdown; nothing where it was not measured."""
    if not path.exists():
        return []
    measured = json.loads(path.read_text())
    kinds = list(measured)
    n_seeds = min(len(seeds) for seeds in measured.values())
    lines = [
        "## Cross-layer against per-layer transcoders",
        "",
        f"At equal parameters and equal L0 per token, summed over layers: TopK({AT_K}) in every layer, trained as "
        f"above; mean and standard deviation over {n_seeds} seeds. Graphs are of two-hop prompts, one of each state.",
        "",
        f"| figure | {' | '.join(kinds)} |",
        f"| --- |{' ---: |' * len(kinds)}",
    ]
    for name, what in FIGURES.items():
        cells = [_cell([seed[name] for seed in measured[kind]]) for kind in kinds]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


def _cell(values: Sequence[float]) -> str:
    middle = statistics.fmean(values)
    if all(float(value).is_integer() for value in values):
        return f"{middle:,.0f}"
    return f"{middle:.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")
