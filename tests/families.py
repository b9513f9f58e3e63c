"""Tiny random models of the architecture families that TransformerLens opens from a local directory."""

from __future__ import annotations

import functools
from typing import Any

import torch

from tests import models

N_LAYERS = 3
SMALL = {
    "vocab_size": models.VOCAB,
    "hidden_size": models.D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": models.N_CTX,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 4}
GEMMA = HEADS | {"query_pre_attn_scalar": 4, "sliding_window": 3}
OLDER = {key: SMALL[key] for key in ("vocab_size", "hidden_size")} | {
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
}
EXPERTS = HEADS | {"num_experts_per_tok": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", GROUPED),  # b_Q, b_K, b_V
    "qwen3": ("Qwen3", HEADS),  # norms of queries and keys, by head
    "mistral": ("Mistral", HEADS | {"sliding_window": 3}),
    "phi3": ("Phi3", SMALL | {"pad_token_id": 0}),  # one matrix for queries, keys and values
    "stablelm": ("StableLm", GROUPED),  # LayerNorm, a part of a head is rotated
    "gemma": ("Gemma", HEADS),
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3", GEMMA),  # norms behind attention and MLP, and of queries and keys; two rotary bases
    "olmo2": ("Olmo2", GROUPED),  # norms behind attention and MLP only; of queries and keys, over all heads
    "granite": ("Granite", GROUPED),
    "phi": ("Phi", SMALL),  # attention and MLP read through one norm
    "falcon": ("Falcon", OLDER),
    "mixtral": ("Mixtral", EXPERTS | {"num_local_experts": 4}),
    "qwen3-moe": ("Qwen3Moe", EXPERTS | {"num_experts": 4, "moe_intermediate_size": 8}),
}

# Families whose attention transformers computes itself: a hook sees its pattern and cannot hold it.
DELEGATED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-neo": (
        "GPTNeo",
        {
            "vocab_size": models.VOCAB,
            "hidden_size": models.D_MODEL,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": models.N_CTX,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 3,
        },
    ),
    "gptj": (
        "GPTJ",
        {
            "vocab_size": models.VOCAB,
            "n_embd": models.D_MODEL,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": models.N_CTX,
            "rotary_dim": 2,
        },
    ),
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("Cohere", GROUPED | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}),  # scales its logits
    "olmo": ("Olmo", SMALL),  # norms without weights
}


@functools.cache
def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    family, settings = (FAMILIES | DELEGATED | REFUSED)[name]
    suffix = "TextConfig" if family == "Gemma3" else "Config"
    config = getattr(transformers, family + suffix)(**settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    opened = models._from_directory(TransformerBridge, model, seed, dtype)
    if "num_experts_per_tok" in settings:
        opened.original_model.set_experts_implementation("eager")  # the other kernels have no float64
    return opened
