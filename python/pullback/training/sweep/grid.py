"""The arms of a sweep: every kind, architecture, setting of its sparsity and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pullback.training.config import TrainConfig

KINDS = ("transcoder", "sae")
# What sets how sparse an architecture is.
KNOBS = {
    "topk": "k",
    "batchtopk": "k",
    "matryoshka_batchtopk": "k",
    "standard": "l1_coefficient",
    "jumprelu": "l0_coefficient",
}


@dataclass(frozen=True)
class Arm:
    """One fit of the grid. `kind` "sae" is an autoencoder of what the transcoders write."""

    kind: str
    architecture: str
    value: float
    """of the setting that `KNOBS` names"""
    config: TrainConfig

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.architecture}-{KNOBS[self.architecture]}{self.value:g}-seed{self.config.seed}"


def grid(
    config: TrainConfig,
    kinds: Sequence[str],
    architectures: Sequence[str] | None,
    values: Mapping[str, Sequence[float]],
    seeds: Sequence[int],
) -> list[Arm]:
    """All arms, those of one seed together.

    Args:
        config: what arms have in common, as for transcoders.
        architectures: None for that of `config`.
        values: {setting of `KNOBS`: its values}.

    Raises:
        ValueError: an unknown kind or architecture, one without values, or a config that does not say what to read.
    """
    if config.activation is not None:
        raise ValueError("sweep: name the rule by architectures=[...]; config.activation would fix how sparse it is")
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"sweep: kinds are {', '.join(KINDS)}, got {kind!r}")
    if "transcoder" in kinds and config.autoencodes:
        raise ValueError(
            f"sweep: hook_name and hook_name_out are both {config.hook_name!r}, which makes autoencoders; name the "
            "MLP's input and output for transcoders, or give kinds=['sae']"
        )
    chosen = list(architectures or [config.architecture or "topk"])
    for architecture in chosen:
        if architecture not in KNOBS:
            raise ValueError(f"sweep: architectures are {', '.join(KNOBS)}, got {architecture!r}")
        if not values.get(KNOBS[architecture]):
            raise ValueError(f"sweep: {architecture} needs values of {KNOBS[architecture]}")
    knobs = {KNOBS[architecture] for architecture in chosen}
    if unused := [name for name, given in values.items() if given and name not in knobs]:
        raise ValueError(
            f"sweep: none of {', '.join(chosen)} has {' or '.join(unused)}; name an architecture that does"
        )
    if not kinds or not seeds:
        raise ValueError("sweep: give at least one kind and one seed")
    return [
        Arm(kind, architecture, value, _config(config, kind, architecture, value, seed))
        for seed in dict.fromkeys(seeds)
        for architecture in dict.fromkeys(chosen)
        for value in dict.fromkeys(values[KNOBS[architecture]])
        for kind in dict.fromkeys(kinds)
    ]


def _config(config: TrainConfig, kind: str, architecture: str, value: float, seed: int) -> TrainConfig:
    own = {"architecture": architecture, "seed": seed, KNOBS[architecture]: value}
    if kind == "sae":
        own |= {"hook_name": config.hook_name_out, "skip_connection": False}
    return replace(config, **own)
