"""Random models of every wiring that attribution knows, small enough for float64, and random transcoders for them."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import torch

from pullback.transcoders import (
    CrossLayerTranscoder,
    JumpReLU,
    ReLU,
    SourceLayer,
    TopK,
    Transcoder,
    TranscoderSet,
)

VOCAB, D_MODEL, N_CTX = 50, 16, 12


@functools.cache
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(VOCAB - 2)} | {"<unk>": VOCAB - 2, "<bos>": VOCAB - 1}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<bos>", "unk_token": "<unk>", "pad_token": "<unk>", "eos_token": "<bos>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _randomise(model: Any, seed: int, std: float = 0.3) -> None:
    """Weights large enough that every path matters; norm weights around 1, all biases live."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype) * std
            is_norm = p.ndim == 1 and "weight" in name
            p.copy_(noise + (1.0 if is_norm else 0.0))


def native(seed: int = 0, dtype: torch.dtype = torch.float64, **overrides: Any) -> Any:
    """A `boot_native` model: norm, grouped heads, positions and MLP as the configuration says."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    config = {
        "n_layers": 3,
        "d_model": D_MODEL,
        "n_ctx": N_CTX,
        "d_head": 4,
        "n_heads": 4,
        "d_mlp": 24,
        "d_vocab": VOCAB,
        "act_fn": "gelu",
        "normalization_type": "LN",
        "seed": seed,
    }
    model = TransformerBridge.boot_native(TransformerBridgeConfig(**{**config, **overrides}))
    _randomise(model, seed)
    return model.to(dtype)


def parallel(seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """A GPT-NeoX model, whose MLP and attention read the same stream, opened from a local directory."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=N_CTX,
    )
    return _from_directory(TransformerBridge, GPTNeoXForCausalLM(config), seed, dtype)


def llama(seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """RMS norms, grouped heads, rotary positions, gated MLP, no biases."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=N_CTX,
    )
    return _from_directory(TransformerBridge, LlamaForCausalLM(config), seed, dtype)


def gpt2(seed: int = 0, dtype: torch.dtype = torch.float64, *, folded: bool = False) -> Any:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCAB, n_embd=D_MODEL, n_layer=3, n_head=4, n_positions=N_CTX)
    model = _from_directory(TransformerBridge, GPT2LMHeadModel(config), seed, dtype)
    if folded:
        model.enable_compatibility_mode(disable_warnings=True)
    return model


def _from_directory(bridge: Any, hf_model: Any, seed: int, dtype: torch.dtype) -> Any:
    _randomise(hf_model, seed)
    with tempfile.TemporaryDirectory() as directory:
        hf_model.save_pretrained(directory)
        tokenizer().save_pretrained(directory)
        return bridge.boot_transformers(directory).to(dtype)


NATIVE = {
    f"{norm}-{heads}-{positions}-{mlp}": {
        "normalization_type": norm,
        "n_key_value_heads": 2 if heads == "gqa" else None,
        "positional_embedding_type": positions,
        "gated_mlp": mlp == "gated",
        "act_fn": "silu" if mlp == "gated" else "gelu",
    }
    for norm in ("LN", "LNPre", "RMS", "RMSPre")
    for heads in ("mha", "gqa")
    for positions in ("standard", "rotary")
    for mlp in ("plain", "gated")
}
OTHERS = {"neox-parallel": parallel, "llama": llama, "gpt2": gpt2, "gpt2-folded": functools.partial(gpt2, folded=True)}
ALL = [*NATIVE, *OTHERS]


@functools.cache
def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    return native(seed, dtype, **NATIVE[name]) if name in NATIVE else OTHERS[name](seed, dtype)


def random_set(
    lens: Any,
    seed: int = 0,
    *,
    layers: list[int] | None = None,
    d_sae: int = 40,
    k: int = 6,
    hook_in: str = "mlp.hook_in",
    hook_out: str = "hook_mlp_out",
    skip: bool = False,
    activation: str = "topk",
) -> TranscoderSet:
    """Random transcoders, far from exact: every error node carries something."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=lens.dtype) * 0.5

    acts = {"topk": TopK(k), "relu": ReLU(), "jumprelu": JumpReLU(torch.full((d_sae,), 1.0, dtype=lens.dtype))}
    d = lens.d_model
    return TranscoderSet(
        {
            layer: Transcoder(
                draw(d_sae, d),
                draw(d_sae),
                draw(d_sae, d),
                draw(d),
                draw(d, d) if skip else None,
                activation=acts[activation],
                hook_in=hook_in,
                hook_out=hook_out,
                reading=lens.reading(layer),
            )
            for layer in (range(lens.n_layers) if layers is None else layers)
        }
    )


def random_saes(lens: Any, seed: int = 7, **options: Any) -> TranscoderSet:
    """Random autoencoders of attention outputs, with the options of `random_set`."""
    return random_set(lens, seed, hook_in="hook_attn_out", hook_out="hook_attn_out", **options)


def random_clt(
    lens: Any,
    seed: int = 0,
    *,
    tying: str = "none",
    layers: list[int] | None = None,
    d_sae: int = 40,
    k: int = 6,
    hook_in: str = "mlp.hook_in",
    skip: bool = False,
    activation: str = "topk",
) -> CrossLayerTranscoder:
    """A random set, with random decoders onward to the layers above."""
    own = random_set(lens, seed, layers=layers, d_sae=d_sae, k=k, hook_in=hook_in, skip=skip, activation=activation)
    generator = torch.Generator().manual_seed(seed + 1)

    def source(layer: int, tc: Transcoder) -> SourceLayer:
        onward = sum(other > layer for other in own) if tying == "none" else 0
        drawn = torch.randn(d_sae, onward, lens.d_model, generator=generator, dtype=lens.dtype) * 0.5
        return SourceLayer(
            tc.W_enc,
            tc.b_enc,
            torch.cat([tc.W_dec[:, None], drawn], 1),
            tc.b_dec,
            tc.W_skip,
            activation=tc.activation,
            hook_in=hook_in,
            reading=tc.reading,
        )

    return CrossLayerTranscoder({layer: source(layer, tc) for layer, tc in own.items()}, tying)
