"""What recording inputs and outputs of all MLPs costs beside the model's forward pass with nothing attached."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import environment, measure, roofline
from bench.run import Settings
from bench.whole.cases import Case, load

TOLERANCE = 1e-3  # of the largest activation; the same sums in another order, through all layers


@torch.no_grad()
def rows(folder: Path, settings: Settings) -> list[dict[str, Any]]:
    """Ours, and two bare passes: of the TransformerLens model that we record from, and of transformers' own."""
    from transformers import AutoModelForCausalLM

    from bench.whole.trainers import open_model
    from pullback.lens import as_lens
    from pullback.training.harvest import Harvester
    from pullback.training.masks import Excluded

    case, tokens = load(folder)
    prompts = tokens[: case.prompts]
    model: Any = open_model(case, folder)
    bare: Any = AutoModelForCausalLM.from_pretrained(folder / "model")
    lens = as_lens(model)
    harvester = Harvester(lens.unhooked(), range(lens.n_layers), "mlp.hook_in", "hook_mlp_out", Excluded(), None)

    def harvest() -> list[Tensor]:
        return next(harvester.harvest([(prompts, torch.ones_like(prompts, dtype=torch.bool))])).rows

    error = _difference(harvest(), _recorded(bare, case, prompts)) / TOLERANCE
    runs: dict[str, Callable[[], Any]] = {
        "pullback": harvest,
        "TransformerLens": lambda: model(prompts),
        "transformers": lambda: bare(prompts),
    }
    neighbours, load_before = environment.Neighbours(), os.getloadavg()[0]
    for run in runs.values():
        run()
    timings = measure.interleave(runs, settings.device, settings.budget, settings.fewest, settings.most)
    others = neighbours.cores()
    times = {name: timing.summary() for name, timing in timings.items()}
    found = []
    for name, own in times.items():
        notes = {"tokens_per_s": case.shape["N"] / own["ms"] * 1e3}
        if name == "pullback":
            if not error <= 1:
                reason = f"wrong: {error:.3g} times the error bound"
                found.append(case.about("harvest", name) | {"status": "refused", "reason": reason})
                continue
            notes["of_bare_pass"] = own["ms"] / min(times[bare]["ms"] for bare in times if bare != name)
        floor = roofline.floor_ms("harvest", case.shape, "float32", settings.ceilings)
        found.append(
            case.about("harvest", name)
            | {"status": "ok", "reason": ""}
            | own
            | {"floor_ms": floor, "fraction_of_floor": floor / own["ms"], "peak_mb": None}
            | {"error": error if name == "pullback" else None, "notes": notes}
            | {"load": load_before, "others": others, "disturbed": settings.disturbed(others)}
        )
    return found


def _recorded(model: Any, case: Case, prompts: Tensor) -> list[Tensor]:
    """The same from torch's own hooks: [x, y of the first layer, ...]."""
    found: list[Tensor] = []

    def hook(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.extend((inputs[0].flatten(0, 1), output.flatten(0, 1)))

    handles = [
        module.register_forward_hook(hook) for name, module in model.base_model.named_modules() if name.endswith(".mlp")
    ]
    model(prompts)
    for handle in handles:
        handle.remove()
    if len(found) != 2 * case.shape["L"]:
        raise ValueError(f"the model has {len(found) // 2} MLPs, the case {case.shape['L']} layers")
    return found


def _difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, as a share of the largest entry."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
