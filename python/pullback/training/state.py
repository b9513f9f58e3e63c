"""What the training of a layer has to remember to go on as if it had never stopped; its way into and out of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.training.running import Readback, RunningVariance

if TYPE_CHECKING:
    from pullback.training.learner import Learner

SEPARATOR = "/"


def step_state(step: Learner) -> dict[str, Any]:
    """Weights, optimizer, and what is known of targets and of idle features. The tensors are the live ones."""
    variance = step._variance
    return {
        "weights": {name: weight.detach() for name, weight in step.features.named_parameters()},
        "optimizer": step.optimizer.state_dict(),
        "rule": step.rule.state_dict(),
        "targets": {"n": variance.n, "mean": variance.mean, "scatter": variance.scatter},
        "idle": step.tokens_since_fired,
        "n_steps": step.n_steps,
    }


def load_step_state(step: Learner, state: Mapping[str, Any]) -> None:
    """Continue from a `step_state`.

    Raises:
        ValueError: it belongs to a step of other sizes.
    """
    own = dict(step.features.named_parameters())
    found, wanted = ({name: list(t.shape) for name, t in group.items()} for group in (state["weights"], own))
    if found != wanted:
        raise ValueError(f"load_state_dict: the weights must have the shapes {wanted}, got {found}")
    step.optimizer.load_state_dict(state["optimizer"])
    with torch.no_grad():
        step.rule.load_state_dict(state.get("rule", {}), step.features)
        for name, weight in own.items():
            weight.copy_(state["weights"][name])
        step.tokens_since_fired.copy_(state["idle"])
    device, targets = step.features.device, state["targets"]
    step._variance = RunningVariance(int(targets["n"]), targets["mean"].to(device), targets["scatter"].to(device))
    step._variance_before, step._last = step._variance, Readback()
    step.screen = None  # a shadow of the weights that were
    step.n_steps = int(state["n_steps"])
    step.stats = None


def target_variance(step: Learner) -> Tensor:
    """E ||y - E y||^2 over all tokens so far, the unit of the step's losses: Float64[Tensor, ""]."""
    return step._variance.variance


def flattened(state: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the numbers of a nested state, each under the path that leads to it."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            inner_tensors, inner_numbers = flattened(value, f"{prefix}{key}{SEPARATOR}")
            tensors |= inner_tensors
            numbers |= inner_numbers
        else:
            (tensors if isinstance(value, Tensor) else numbers)[prefix + key] = value
    return tensors, numbers


def nested(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flattened`."""
    state: dict[str, Any] = {}
    for part in parts:
        for path, value in part.items():
            *groups, key = path.split(SEPARATOR)
            place = state
            for group in groups:
                place = place.setdefault(group, {})
            place[key] = value
    return state
