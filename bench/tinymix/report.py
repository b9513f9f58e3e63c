"""bench/results/tinymix -> docs/TINYMIX_REPORT.md and its plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pullback.training.sweep.matched import matched, mean_over_layers

from ..environment import ROOT
from . import across

RESULTS = ROOT / "bench" / "results" / "tinymix"
PAGE = ROOT / "docs" / "TINYMIX_REPORT.md"
SWEEP, CROSS_LAYER = "transcoders_and_autoencoders.json", "cross_layer.json"
PLOT = "bench/tinymix-sweep.png"
ARCHITECTURE = "topk"
# Of every arm; settings are kept once, histograms not at all.
FIGURES = (
    "ce_original", "ce_replaced", "ce_mean_ablated", "ce_zero_ablated", "ce_recovered", "ce_recovered_from_zero", "kl",
    "top1_agreement", "l0", "fvu", "cosine", "explained_variance", "dead", "n_tokens",
)  # fmt: skip
NAMES = {
    "ce_recovered": "CE recovered",
    "ce_replaced": "CE replaced",
    "kl": "KL",
    "top1_agreement": "top-1 agreement",
    "fvu": "FVU",
}


def collect(work: Path, results: Path = RESULTS) -> None:
    """The sweeps of all seeds that are in `work`, as one file."""
    sweeps = [json.loads(path.read_text()) for path in sorted(work.glob("seed*/sweep.json"))]
    if not sweeps:
        raise ValueError(f"no sweep in {work}: measure first, python -m bench.tinymix --measure")
    arms = {name: arm for one in sweeps for name, arm in one["arms"].items()}
    first = next(iter(arms.values()))
    content = {
        "versions": sweeps[0]["versions"],
        "evaluation": sweeps[0]["evaluation"],
        "settings": {
            name: value for name, value in first["settings"].items() if name not in ("k", "seed", "hook_name")
        },
        "arms": {
            name: {key: value for key, value in arm.items() if key != "settings"}
            | {"figures": {on: {f: found[f] for f in FIGURES} for on, found in arm["figures"].items()}}
            for name, arm in arms.items()
        },
        "matched": matched(arms),
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / SWEEP).write_text(json.dumps(content, indent=1) + "\n")


def page(results: Path = RESULTS) -> str:
    """The report as Markdown."""
    found = json.loads((results / SWEEP).read_text())
    return "\n".join([*_head(found), *_sweep(found), *across.section(results / CROSS_LAYER)]) + "\n"


def _head(found: Mapping[str, Any]) -> list[str]:
    settings, versions = found["settings"], found["versions"]
    steps = -(-settings["training_tokens"] // settings["train_batch_size_tokens"])
    seeds = sorted({arm["seed"] for arm in found["arms"].values()})
    prompts = {name: one["prompts"] for name, one in found["evaluation"].items()}
    return [
        "# Dictionaries of tiny-mix",
        "",
        "`make report` trains and measures all of this again, on a CPU, and writes this page.",
        "",
        f"Every arm: {settings['d_sae']} features a layer, TopK, {steps:,} steps of "
        f"{settings['train_batch_size_tokens']} tokens, Adam at {settings['lr']:g}, seeds "
        f"{', '.join(map(str, seeds))} (of the weights and of the order of the same cached activations). Measured on "
        f"{prompts['answers']} held-out prompts where the task asks for an answer (*answers*), and on every token of "
        f"{prompts['every token']} fresh prompts (*every token*). The second says little about loss here: where "
        "nothing announces the next word the model was not trained to guess it, and a model whose MLPs are zero may "
        "guess better. All four layers are replaced at once; a beginning-of-sequence token keeps its own output in "
        "every arm.",
        "",
        f"pullback {versions['pullback']}, torch {versions['torch']}, TransformerLens {versions['transformer_lens']}.",
        "",
    ]


def _sweep(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Transcoders against autoencoders of the MLP output",
        "",
        "The claim to test (Dunefsky et al. 2024): at equal L0, transcoders recover at least as much of the loss as "
        "autoencoders do.",
        "",
        *_verdict(found),
        "",
        f"![L0 against loss and against FVU]({PLOT})",
        "",
    ]
    for evaluation, architectures in found["matched"].items():
        lines += [f"### {evaluation}", "", *_levels(found, evaluation), "", *_table(architectures[ARCHITECTURE]), ""]
    return lines


def _verdict(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for evaluation, architectures in found["matched"].items():
        recovered = architectures[ARCHITECTURE]["ce_recovered"]
        overall, by_seed = recovered["overall"], recovered["by_seed"]
        seeds = ", ".join(f"{value:+.4f}" for value in by_seed.values())
        if min(by_seed.values()) >= 0:
            outcome = "**Holds**: at least on par in every seed"
        elif overall["std"] is not None and overall["mean"] + 2 * overall["std"] >= 0:
            outcome = "**On par**: the difference is within two standard deviations over seeds"
        else:
            outcome = "**Does not hold**: autoencoders recover more"
        lines.append(
            f"- *{evaluation}*, L0 {recovered['l0'][0]:.0f} to {recovered['l0'][-1]:.0f}: {outcome}. CE recovered, "
            f"transcoder less autoencoder, mean over L0s: {seeds} by seed, {overall['mean']:+.4f} on average"
            + ("." if overall["std"] is None else f" (standard deviation {overall['std']:.4f}).")
        )
    return lines


def _levels(found: Mapping[str, Any], evaluation: str) -> list[str]:
    figures = next(iter(found["arms"].values()))["figures"][evaluation]
    dead = {
        kind: max(
            mean_over_layers(arm["figures"][evaluation]["dead"]) or 0.0
            for arm in found["arms"].values()
            if arm["kind"] == kind
        )
        for kind in ("transcoder", "sae")
    }
    on_everything = (
        f" Features that never fired, mean over layers, at most: transcoders {dead['transcoder']:.1%}, autoencoders "
        f"{dead['sae']:.1%}."
        if evaluation == "every token"
        else ""
    )
    return [
        f"Cross-entropy of the model {figures['ce_original']:.4f}, with all MLP outputs at their means "
        f"{figures['ce_mean_ablated']:.4f}, at zero {figures['ce_zero_ablated']:.4f} nats.{on_everything}"
    ]


def _table(figures: Mapping[str, Any]) -> list[str]:
    """Means over seeds; the difference with its standard deviation."""
    lines = [
        "| figure | L0 | transcoder | autoencoder | difference | std over seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key, name in NAMES.items():
        own = figures[key]
        for i, l0 in enumerate(own["l0"]):
            std = "" if own["std"][i] is None else f"{own['std'][i]:.4f}"
            lines.append(
                f"| {name} | {l0:.1f} | {own['transcoder'][i]:.4f} | {own['sae'][i]:.4f} | {own['difference'][i]:+.4f} "
                f"| {std} |"
            )
    return lines
