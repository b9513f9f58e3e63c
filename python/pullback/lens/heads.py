"""What attention does to queries and keys, read from any TransformerLens model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from pullback.lens.adapter import Lens

ROTARY_HOOKS = ("hook_cos", "hook_sin")
"""Where a wrapped model shows its tables, for the positions of the pass."""


def rotary_tables(lens: Lens, attn: Any, seen: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, bool] | None:
    """cos and sin Float[Tensor, 'T d_rot'] of rotary positions, and whether pairs lie side by side; None where there
    are none that are known here.

    From ROTARY_HOOKS of a wrapped model, as they were `seen`; from a native one's buffers, or HookedTransformer's.
    """
    cfg = lens.model.cfg
    adjacent = bool(getattr(cfg, "rotary_adjacent_pairs", False))
    native = getattr(getattr(attn, "original_component", None), "rotary", None)
    if set(ROTARY_HOOKS) <= set(seen):
        cos, sin = (seen[name].flatten(0, -3)[0] for name in ROTARY_HOOKS)
        if adjacent:  # tables of halves that repeat, for pairs side by side
            cos, sin = (table[:, : table.shape[1] // 2].repeat_interleave(2, -1) for table in (cos, sin))
        adjacent = adjacent or bool(getattr(cfg, "rotary_interleaved_cos_sin", False))
    elif native is not None and hasattr(native, "cos_cached"):
        cos, sin, adjacent = native.cos_cached, native.sin_cached, True
    elif hasattr(attn, "rotary_cos"):
        cos, sin = attn.rotary_cos, attn.rotary_sin
    else:
        return None
    return cos.detach().to(lens.compute_dtype), sin.detach().to(lens.compute_dtype), adjacent


def score_scale(attn: Any, d_head: int) -> float:
    """What <q, k> is multiplied by: `scaling`; over `scale` in a native model, `attn_scale` in HookedTransformer."""
    wrapped = getattr(attn, "original_component", None)
    for owner, name, power in ((wrapped, "scaling", 1), (wrapped, "scale", -1), (attn, "attn_scale", -1)):
        value = getattr(owner, name, None)
        if isinstance(value, int | float):
            return float(value) ** power
    return d_head**-0.5
