"""exact: a ReLU MLP is its own transcoder, W_enc = W_in^T and W_dec = W_out (METHODS O10).

Nothing is left over then: error nodes are zero, replacing every MLP changes nothing, and both scores are 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.lens import Lens, as_lens
from pullback.transcoders import ReLU, Transcoder, TranscoderSet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SEED = 0
N_LAYERS, D_MODEL, N_HEADS, D_HEAD, D_MLP, N_CTX, D_VOCAB = 3, 32, 4, 8, 96, 16, 64
WEIGHT_STD, BIAS_STD = 0.25, 0.1
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def load(*, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> TransformerBridge:
    """Random weights from one seed: LayerNorm with live scale and bias, learned positions, ReLU MLPs, all biases live.

    It has no tokenizer: prompts are token ids, 0..63, at most 16 of them. The caller's random state is left as it was.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    config = TransformerBridgeConfig(
        n_layers=N_LAYERS,
        d_model=D_MODEL,
        n_heads=N_HEADS,
        d_head=D_HEAD,
        d_mlp=D_MLP,
        n_ctx=N_CTX,
        d_vocab=D_VOCAB,
        act_fn="relu",
        normalization_type="LN",
        seed=SEED,
    )
    # transformer_lens 4.x attaches boot_native while it is imported, where a type checker cannot see it.
    model = TransformerBridge.boot_native(  # pyright: ignore[reportAttributeAccessIssue]
        config, dtype=dtype, device=device, model_name="exact"
    )
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            std = WEIGHT_STD if parameter.ndim == 2 else BIAS_STD
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * std
            parameter.copy_(drawn + 1.0 if is_scale else drawn)
    return model.eval()


def transcoders(*, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> TranscoderSet:
    return exact_transcoders(load(dtype=dtype, device=device))


def truth() -> dict[str, float]:
    """Figures that every prompt and every token stream must give, up to rounding."""
    return {"error_mass": 0.0, "replacement": 1.0, "completeness": 1.0, "fvu": 0.0, "ce_recovered": 1.0, "kl": 0.0}


def exact_transcoders(model: Any) -> TranscoderSet:
    """The transcoders that a model with plain ReLU MLPs already contains: neuron i is feature i.

    Args:
        model: a TransformerLens model, or a `Lens` on one.

    Raises:
        ValueError: the MLPs are gated or absent, have another activation function, or compute something else than
            ReLU(x W_in + b_in) W_out + b_out on a probe.
    """
    lens = as_lens(model)
    activation = str(getattr(lens.model.cfg, "act_fn", None) or "unknown").lower()
    if lens.gated:
        raise _refusal(lens, "its MLPs are gated")
    if activation != "relu":
        raise _refusal(lens, f"its MLPs use {activation}")
    sets = TranscoderSet({layer: _own_transcoder(lens, layer) for layer in range(lens.n_layers)})
    _must_reproduce(lens, sets)
    return sets


def _own_transcoder(lens: Lens, layer: int) -> Transcoder:
    """W_in (d, F), W_out (F, d) as TransformerLens gives them, in feature-major rows."""
    mlp = getattr(lens.model.blocks[layer], "mlp", None)
    W_in, W_out = getattr(mlp, "W_in", None), getattr(mlp, "W_out", None)
    if not isinstance(W_in, Tensor) or not isinstance(W_out, Tensor) or W_in.shape != W_out.T.shape:
        raise _refusal(lens, f"layer {layer} has no MLP with one input and one output matrix")

    def bias(name: str, size: int) -> Tensor:
        b = getattr(mlp, name, None)
        return W_in.new_zeros(size) if b is None else b.detach().clone()

    d, F = W_in.shape
    return Transcoder(
        W_in.detach().T.clone(),
        bias("b_in", F),
        W_out.detach().clone(),
        bias("b_out", d),
        activation=ReLU(),
        reading=lens.reading(layer),
    )


def _must_reproduce(lens: Lens, sets: TranscoderSet) -> None:
    """A configuration can lie, a probe cannot: compare on tokens spread over the vocabulary."""
    n = min(lens.n_ctx, lens.d_vocab, 16)
    probe = (torch.arange(n, device=lens.device) * (lens.d_vocab // n))[None]
    for layer, (x, y) in lens.mlp_io(probe).items():
        gap = float((sets[layer](x) - y).abs().max() / y.abs().max().clamp(min=1e-30))
        if not gap <= TOLERANCE.get(lens.dtype, 5e-2):
            raise _refusal(
                lens, f"ReLU(x W_in + b_in) W_out + b_out misses the MLP of layer {layer} by {gap:.1e} of its size"
            )


def _refusal(lens: Lens, why: str) -> ValueError:
    return ValueError(
        f"exact_transcoders: only plain ReLU MLPs are their own transcoders, and of {lens.model_name} {why}; "
        "train transcoders for it instead"
    )
