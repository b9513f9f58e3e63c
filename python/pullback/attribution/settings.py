"""What the graphs of one run have in common, whatever their prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pullback.attribution.asked import Asked
from pullback.attribution.rules import EdgeRule
from pullback.lens import Lens

ENGINES = ("linear", "autograd")
CHECK_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(frozen=True)
class Settings:
    """Arguments of `attribute` that do not depend on the prompt; it says what they mean.

    Raises ValueError for values without meaning.
    """

    attribution_targets: Asked = None
    position: int = -1
    max_n_logits: int = 10
    desired_logit_prob: float = 0.95
    batch_size: int = 512
    max_feature_nodes: int | None = None
    update_interval: int = 4
    edge_mass: float = 1.0
    edges_per_target: int | None = None
    engine: str = "linear"
    precision: str | None = None
    offload: str | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"attribute: engine must be one of {', '.join(ENGINES)}, got '{self.engine}'")
        limit = self.max_feature_nodes
        if self.batch_size < 1 or self.update_interval < 1 or (limit is not None and limit < 0):
            raise ValueError(
                "attribute: batch_size and update_interval must be at least 1, max_feature_nodes at least 0"
            )
        if self.precision not in (None, "bfloat16"):
            raise ValueError(f"attribute: precision must be None or 'bfloat16', got {self.precision!r}")
        if self.offload is not None and self.engine == "autograd":
            raise ValueError("attribute: engine 'autograd' runs the model all the time; offload is for engine 'linear'")
        _ = self.edge_rule

    @property
    def edge_rule(self) -> EdgeRule:
        return EdgeRule(self.edge_mass, self.edges_per_target)

    def products(self, lens: Lens) -> torch.dtype:
        """The dtype that gradients are multiplied in. Raises ValueError for an engine or precision that this model
        cannot have."""
        if self.engine == "autograd" and lens.dtype not in CHECK_TOLERANCE:
            raise ValueError(
                f"attribute: engine 'autograd' runs in float32 and float64, not in {lens.dtype}; use 'linear'"
            )
        if self.precision is None:
            return lens.compute_dtype
        if self.engine == "autograd" or lens.compute_dtype == torch.float64:
            raise ValueError(
                "attribute: precision='bfloat16' is for the linear engine and models in at most float32; leave it out "
                "here"
            )
        return torch.bfloat16

    def written(self, products: torch.dtype) -> dict[str, Any]:
        """What a graph remembers of them."""
        names = ("position", "max_n_logits", "desired_logit_prob", "batch_size", "max_feature_nodes", "edge_mass")
        return {
            **{name: getattr(self, name) for name in (*names, "edges_per_target")},
            "precision": str(products).removeprefix("torch."),
        }
