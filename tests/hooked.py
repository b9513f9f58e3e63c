"""Random `HookedTransformer` models, where the installed TransformerLens still has them."""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

import pytest
import torch

from pullback.lens import Lens, as_lens
from tests import models


def must_have_hooked_transformer() -> None:
    """Skips the module that calls it otherwise."""
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        version = importlib.metadata.version("transformer_lens")
        pytest.skip(f"transformer_lens {version} has no HookedTransformer", allow_module_level=True)


WIRINGS: dict[str, dict[str, Any]] = {
    "LN": {},
    "LNPre-gqa": {"normalization_type": "LNPre", "n_key_value_heads": 2},
    "LN-rotary-gqa": {"positional_embedding_type": "rotary", "rotary_dim": 4, "n_key_value_heads": 2},
    "RMS-rotary-gqa-gated": {
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "n_key_value_heads": 2,
        "gated_mlp": True,
        "act_fn": "silu",
        "final_rms": True,
    },
    "RMSPre-gated": {"normalization_type": "RMSPre", "gated_mlp": True, "final_rms": True},
    "RMS-post-norms-rotary-gqa": {
        "normalization_type": "RMS",
        "use_normalization_before_and_after": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "n_key_value_heads": 2,
        "attn_scores_soft_cap": 2.0,
        "final_rms": True,
    },
    "RMS-qk-norm-rotary": {
        "normalization_type": "RMS",
        "use_qk_norm": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "final_rms": True,
    },
    "none": {"normalization_type": None},
    "LN-rotary-parallel": {"positional_embedding_type": "rotary", "rotary_dim": 4, "parallel_attn_mlp": True},
    "LN-soft-cap": {"output_logits_soft_cap": 3.0},
}
TOKENS = torch.randint(0, models.VOCAB, (6,), generator=torch.Generator().manual_seed(8))


@functools.cache
def hooked(name: str, dtype: torch.dtype = torch.float64) -> Any:
    config = {
        "n_layers": 3,
        "d_model": models.D_MODEL,
        "n_ctx": models.N_CTX,
        "d_head": 4,
        "n_heads": 4,
        "d_mlp": 24,
        "d_vocab": models.VOCAB,
        "act_fn": "gelu",
        "normalization_type": "LN",
        "seed": 0,
        "device": "cpu",
        "dtype": dtype,
    }
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    model = HookedTransformer(HookedTransformerConfig(**{**config, **WIRINGS[name]}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64) * (0.1 if name == "none" else 0.3)
            p.copy_(noise + (1.0 if key.endswith(".w") else 0.0))
    return model


def lens_of(name: str) -> Lens:
    return as_lens(hooked(name))
