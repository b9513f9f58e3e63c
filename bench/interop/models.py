"""Random models and dictionaries that circuit-tracer can hold too."""

from __future__ import annotations

from typing import Any

import torch

from pullback.lens import Lens
from pullback.transcoders import CrossLayerTranscoder, JumpReLU, ReLU, SourceLayer, TopK, Transcoder, TranscoderSet

VOCAB, D, F, K = 97, 64, 512, 24
PROMPT = [0, 5, 17, 80, 33, 33, 2, 64, 91, 12]  # 0 stands for BOS
COMMON = {
    "n_layers": 4,
    "d_model": D,
    "n_ctx": 16,
    "n_heads": 4,
    "d_head": 16,
    "d_mlp": 256,
    "d_vocab": VOCAB,
    "seed": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    "like GPT-2": COMMON | {"normalization_type": "LN", "act_fn": "gelu", "positional_embedding_type": "standard"},
    "like Llama": COMMON
    | {
        "normalization_type": "RMS",
        "act_fn": "silu",
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": True,  # as native models pair them
        "n_key_value_heads": 2,
    },
}


def random_model(config: dict[str, Any]) -> Any:
    """Weights large enough that every path matters; norm weights around 1, all biases live."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_native(TransformerBridgeConfig(**config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            is_norm = p.ndim == 1 and "weight" in name
            p.copy_(torch.randn(p.shape, generator=generator) * 0.15 + (1.0 if is_norm else 0.0))
    return model


def dictionaries(lens: Lens) -> dict[str, TranscoderSet | CrossLayerTranscoder]:
    """About K of F features active at a position, whatever the rule; none of them reconstructs much."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / D**0.5

    def a_set(rule: Any, *, skip: bool = False, shift: float = 0.0, hook_in: str = "mlp.hook_in") -> TranscoderSet:
        def transcoder(layer: int) -> Transcoder:
            weights = (draw(F, D), draw(F) + shift, draw(F, D), draw(D), draw(D, D) if skip else None)
            return Transcoder(*weights, activation=rule, hook_in=hook_in, reading=lens.reading(layer))

        return TranscoderSet({layer: transcoder(layer) for layer in range(lens.n_layers)})

    def across_layers(rule: Any, shift: float = 0.0) -> CrossLayerTranscoder:
        n = lens.n_layers
        return CrossLayerTranscoder(
            {
                i: SourceLayer(
                    draw(F, D), draw(F) + shift, draw(F, n - i, D), draw(D), activation=rule, reading=lens.reading(i)
                )
                for i in range(n)
            }
        )

    # circuit-tracer's TopK keeps what is negative among the k largest.
    topk, jump, low = TopK(K, relu=False), JumpReLU(torch.linspace(1.5, 2.0, F)), -1.7
    return {
        "ReLU": a_set(ReLU(), shift=low),
        "TopK": a_set(topk),
        "JumpReLU": a_set(jump),
        "ReLU, skip": a_set(ReLU(), skip=True, shift=low),
        "TopK, skip": a_set(topk, skip=True),
        "JumpReLU, skip": a_set(jump, skip=True),
        "TopK, before the norm": a_set(topk, hook_in="hook_resid_mid"),
        "cross-layer ReLU": across_layers(ReLU(), shift=low),
        "cross-layer JumpReLU": across_layers(jump),
    }
