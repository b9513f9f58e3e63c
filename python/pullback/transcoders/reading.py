"""How the model was read when a transcoder was trained: what has to agree before it may be used elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class ModelReading:
    """Record of one layer of one model, written next to the weights and compared by `Lens.check`.

    Attributes:
        model_name: name of the model as TransformerLens knows it.
        n_layers, d_model, d_vocab: its sizes.
        norm: "LN" or "RMS", the kind of the norm in front of the MLP ("none" where there is none).
        folded: whether that norm's scale and bias are folded into the next weights, or absent.
        parallel: whether attention and MLP read the same stream (GPT-NeoX).
        tl_version: version of TransformerLens that ran the model.
        layer: the layer that was read.
        mlp_fingerprint: a few numbers that tell the layer's MLP input weight from another's.
    """

    model_name: str
    n_layers: int
    d_model: int
    d_vocab: int
    norm: str
    folded: bool
    parallel: bool
    tl_version: str
    layer: int | None = None
    mlp_fingerprint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML or JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelReading:
        """The inverse of `to_dict`. Raises ValueError for missing or unknown keys."""
        known = {field.name for field in fields(cls)}
        needed = known - {"layer", "mlp_fingerprint"}
        missing, unknown = sorted(needed - set(data)), sorted(set(data) - known)
        if missing or unknown:
            raise ValueError(
                f"ModelReading: missing keys {missing}, unknown keys {unknown}; written by another version?"
            )
        return cls(**data)
