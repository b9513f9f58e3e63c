"""The training steps that are compared. A factory takes (shape, device) and returns step(x, y) -> FVU of the batch.

All of them are given the same float32 batches. A TopK transcoder x -> y, except where a library trains only
autoencoders x -> x (`sae-lens`), and except for `floor`, which learns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops import sparse_layer

LR = 2e-4
Shape = Mapping[str, int]
Step = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Implementation:
    """`build(shape, device)` makes the step; `needs` names the module it cannot do without."""

    name: str
    build: Callable[[Shape, torch.device], Step]
    needs: str | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")
    role: str = "op"
    suites: tuple[str, ...] = ("tiny", "quick", "full", "gpu")


def fvu(residual: Tensor, y: Tensor) -> Tensor:
    """The share of the variance of y (n, d) that is unexplained."""
    return residual.square().sum() / (y - y.mean(0)).square().sum()


# ---- ours ------------------------------------------------------------------------------------------------------------


def pullback(shape: Shape, device: torch.device) -> Step:
    """As a user gets it: clipping and the count of dead features included."""
    from pullback.training import TrainStep

    step = TrainStep(shape["d"], shape["d"], shape["F"], k=shape["k"], lr=LR, device=device)

    def run(x: Tensor, y: Tensor) -> float:
        return float(step(x, y))

    return run


# ---- torch -----------------------------------------------------------------------------------------------------------


class Weights:
    """Encoder (F, d), its bias, decoder (F, d), its bias."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        g = torch.Generator(device).manual_seed(0)
        n_features, d = shape["F"], shape["d"]
        rows = torch.randn(n_features, d, device=device, generator=g) / d**0.5
        self.W_enc = rows.clone().requires_grad_()
        self.b_enc = torch.zeros(n_features, device=device, requires_grad=True)
        self.W_dec = (0.1 * rows).requires_grad_()
        self.b_dec = torch.zeros(d, device=device, requires_grad=True)

    def __iter__(self) -> Any:
        return iter((self.W_enc, self.b_enc, self.W_dec, self.b_dec))


def _by_autograd(
    shape: Shape, device: torch.device, forward: Callable[[Weights, Tensor, int], Tensor], fused: bool = False
) -> Step:
    weights, k = Weights(shape, device), shape["k"]
    optimizer = torch.optim.Adam(list(weights), lr=LR, fused=fused or None)

    def run(x: Tensor, y: Tensor) -> float:
        loss = fvu(forward(weights, x, k) - y, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return run


def torch_sparse(shape: Shape, device: torch.device) -> Step:
    """Dense pre-activations, topk, embedding_bag, autograd, Adam as it comes."""

    def forward(w: Weights, x: Tensor, k: int) -> Tensor:
        values, ids = torch.addmm(w.b_enc, x, w.W_enc.T).topk(k, dim=-1, sorted=False)
        return F.embedding_bag(ids, w.W_dec, per_sample_weights=values.relu(), mode="sum") + w.b_dec

    return _by_autograd(shape, device, forward)


def _dense_forward(w: Weights, x: Tensor, k: int) -> Tensor:
    h = F.linear(x, w.W_enc, w.b_enc)
    values, ids = h.topk(k, dim=-1, sorted=False)
    features = torch.zeros_like(h).scatter(-1, ids, values.relu())
    return F.linear(features, w.W_dec.T, w.b_dec)


def torch_dense(shape: Shape, device: torch.device) -> Step:
    """Features scattered into an N x F matrix, dense decoder, autograd, Adam: how most trainers are written."""
    return _by_autograd(shape, device, _dense_forward)


def torch_dense_bf16(shape: Shape, device: torch.device) -> Step:
    """The same under bfloat16 autocast, with fused Adam."""
    step = _by_autograd(shape, device, _dense_forward, fused=True)

    def run(x: Tensor, y: Tensor) -> float:
        with torch.autocast(device.type, torch.bfloat16):
            return step(x, y)

    return run


class _SparseLayer(torch.autograd.Function):
    """addmm, topk, embedding_bag; both weight gradients as products of a transposed CSR matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int) -> Tensor:
        values, ids = torch.addmm(b_enc, x, W_enc.T).topk(k, dim=-1, sorted=False)
        values = values.relu()
        ctx.save_for_backward(x, values, ids, W_dec)
        return F.embedding_bag(ids, W_dec, per_sample_weights=values, mode="sum") + b_dec

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, values, ids, W_dec = ctx.saved_tensors
        entries = sparse_layer.Transposed(ids, len(W_dec))
        dh = sparse_layer.dots(g, W_dec, ids) * (values > 0)
        db = g.new_zeros(len(W_dec)).index_add_(0, ids.flatten(), dh.flatten())
        return None, entries.times(dh, x), db, entries.times(values, g), g.sum(0), None


def torch_csr(shape: Shape, device: torch.device) -> Step:
    """The best that stock ops give: no dense gradient on the way, and fused Adam."""
    return _by_autograd(
        shape,
        device,
        lambda w, x, k: _SparseLayer.apply(x, *w, k),
        fused=True,  # type: ignore[no-any-return]
    )


def floor(shape: Shape, device: torch.device) -> Step:
    """What no exact step can do without: one bfloat16 GEMM of the encoder's size, and fused Adam over all weights."""
    weights = list(Weights(shape, device))
    optimizer = torch.optim.Adam(weights, lr=0.0, fused=True)
    for w in weights:
        w.grad = torch.full_like(w, 1e-3)
    W16 = weights[0].detach().bfloat16()
    out = torch.empty(shape["N"], shape["F"], device=device, dtype=torch.bfloat16)

    def run(x: Tensor, y: Tensor) -> float:  # noqa: ARG001
        torch.mm(x.bfloat16(), W16.T, out=out)
        optimizer.step()
        return 0.0

    return run


# ---- other libraries -------------------------------------------------------------------------------------------------


def sparsify(shape: Shape, device: torch.device) -> Step:
    """eai-sparsify's coder as it comes, with torch's Adam; its trainer's record of firing features is kept too."""
    from sparsify import SparseCoder, SparseCoderConfig  # type: ignore[import-not-found]

    torch.manual_seed(0)
    config = SparseCoderConfig(num_latents=shape["F"], k=shape["k"], transcode=True)
    coder = SparseCoder(shape["d"], config, device=device, dtype=torch.float32)
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR)
    fired = torch.zeros(shape["F"], dtype=torch.bool, device=device)

    def run(x: Tensor, y: Tensor) -> float:
        out = coder(x, y=y)
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(out.fvu.detach())

    return run


def sparsify_bf16(shape: Shape, device: torch.device) -> Step:
    """The same with the forward pass under bfloat16 autocast, as its trainer has it on a GPU."""
    step = sparsify(shape, device)

    def run(x: Tensor, y: Tensor) -> float:
        with torch.autocast(device.type, torch.bfloat16):
            return step(x, y)

    return run


def sae_lens(shape: Shape, device: torch.device) -> Step:
    """SAETrainer.step on its TopK autoencoder (it trains no transcoder), with the settings it comes with."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig  # type: ignore[import-not-found]
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig  # type: ignore[import-not-found]
    from sae_lens.training.sae_trainer import SAETrainer  # type: ignore[import-not-found]

    torch.manual_seed(0)
    coder = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=shape["d"], d_sae=shape["F"], k=shape["k"], device=str(device), dtype="float32")
    )
    config = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=shape["N"],
        device=str(device),
        lr=LR,
        lr_end=LR / 10,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        lr_decay_steps=0,
        n_restart_cycles=1,
        adam_beta1=0.9,
        adam_beta2=0.999,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        autocast=False,
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=config, sae=coder, data_provider=iter(()))

    def run(x: Tensor, y: Tensor) -> float:  # noqa: ARG001
        out = trainer.step(x)
        trainer.n_training_steps += 1
        return float(fvu(out.sae_out.detach() - x, x))

    return run


IMPLEMENTATIONS: dict[str, Implementation] = {
    one.name: one
    for one in (
        Implementation("pullback", pullback),
        Implementation("torch", torch_sparse, suites=("quick", "full", "gpu")),
        Implementation("torch dense", torch_dense, suites=("full", "gpu")),
        Implementation("torch dense, bf16", torch_dense_bf16, devices=("cuda",)),
        Implementation("torch CSR, fused Adam", torch_csr),
        Implementation("sparsify", sparsify, "sparsify"),
        Implementation("sparsify, bf16", sparsify_bf16, "sparsify", devices=("cuda",)),
        Implementation("sae-lens (SAE)", sae_lens, "sae_lens"),
        Implementation("GEMM bf16 + Adam", floor, role="floor"),
    )
}
