"""A lean twin of TransformerLens' native model, for training.

Same parameters under the same names as `TransformerBridge.boot_native` builds (so a state dict moves over unchanged)
and the same function, without hooks: pre-norm blocks with parameter-free LayerNorm, rotary attention on adjacent
pairs, a ReLU MLP and an untied head without bias.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback.zoo.tinymix.vocab import WORDS


@dataclass(frozen=True)
class ModelShape:
    """Sizes of tiny-mix; `d_vocab` counts the special tokens too."""

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    d_head: int = 32
    d_mlp: int = 512
    n_ctx: int = 48
    d_vocab: int = len(WORDS)
    eps: float = 1e-5
    rotary_base: int = 10000

    def to_dict(self) -> dict[str, int | float]:
        return asdict(self)


@dataclass
class Patch:
    """What to write into one MLP output: row b gets `value[b]` (d_model) at position `position[b]` of layer `layer`."""

    layer: int
    position: Tensor  # Int[Tensor, "B"]
    value: Tensor  # Float[Tensor, "B d_model"]


class Attention(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width = shape.n_heads * shape.d_head
        self.n_heads = shape.n_heads
        self.q = nn.Linear(shape.d_model, width)
        self.k = nn.Linear(shape.d_model, width)
        self.v = nn.Linear(shape.d_model, width)
        self.o = nn.Linear(width, shape.d_model)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n_rows, n_pos, _ = x.shape
        weight = torch.cat([self.q.weight, self.k.weight, self.v.weight])
        bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        qkv = F.linear(x, weight, bias).view(n_rows, n_pos, 3, self.n_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        return self.o(mixed.transpose(1, 2).reshape(n_rows, n_pos, -1))


class MLP(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.fc_in = nn.Linear(shape.d_model, shape.d_mlp)
        self.fc_out = nn.Linear(shape.d_mlp, shape.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_out(F.relu(self.fc_in(x)))


class Block(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attn = Attention(shape)
        self.mlp = MLP(shape)


class LeanModel(nn.Module):
    """tokens (B, T) -> logits (B, T, d_vocab). Padding stands on the right: causal attention needs no mask for it."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: ModelShape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or ModelShape()
        # torch's own initialisation, soon overwritten, must not disturb the caller's random state
        with torch.random.fork_rng(devices=[]):
            self.tok_embed = nn.Embedding(shape.d_vocab, shape.d_model)
            self.layers = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
            self.head = nn.Linear(shape.d_model, shape.d_vocab, bias=False)
        cos, sin = rotary_table(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.shape.eps)

    def forward(self, tokens: Tensor, patch: Patch | None = None) -> Tensor:
        """Logits (B, T, d_vocab); `patch` overwrites one layer's MLP output at one position of each row."""
        x = self.tok_embed(tokens)
        for layer in range(self.shape.n_layers):
            x, mlp_out = self.block(layer, x)
            if patch is not None and patch.layer == layer:
                rows = torch.arange(len(tokens), device=tokens.device)
                mlp_out = mlp_out.index_put((rows, patch.position), patch.value)
            x = x + mlp_out
        return self.head(self.norm(x))

    def block(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Residual after layer `layer`'s attention and its MLP's output, both (B, T, d_model)."""
        block = cast(Block, self.layers[layer])
        n_pos = x.shape[1]
        x = x + block.attn(self.norm(x), self.cos[:n_pos], self.sin[:n_pos])
        return x, block.mlp(self.norm(x))

    def mlp_output(self, tokens: Tensor, layer: int, position: Tensor) -> Tensor:
        """MLP output of `layer` at `position` (B) of each row: (B, d_model). Stops at that layer."""
        x = self.tok_embed(tokens)
        for below in range(layer):
            mid, mlp_out = self.block(below, x)
            x = mid + mlp_out
        return self.block(layer, x)[1][torch.arange(len(tokens), device=tokens.device), position]


def rotary_table(shape: ModelShape) -> tuple[Tensor, Tensor]:
    """cos and sin (n_ctx, d_head) in float32, as TransformerLens stores them; each adjacent pair shares an angle."""
    frequency = 1.0 / (shape.rotary_base ** (torch.arange(0, shape.d_head, 2).float() / shape.d_head))
    angle = torch.outer(torch.arange(shape.n_ctx).float(), frequency).repeat_interleave(2, dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: the pair (a, b) becomes (a cos - b sin, b cos + a sin)."""
    quarter_turn = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + quarter_turn * sin


def initialise(model: LeanModel, generator: torch.Generator, scale: float = 0.8) -> None:
    """Weights from N(0, scale / sqrt(d_model)), those that write into the residual / sqrt(2 n_layers); biases zero."""
    shape = model.shape
    for name, parameter in model.named_parameters():
        std = scale / math.sqrt(shape.d_model)
        if name.endswith((".o.weight", ".fc_out.weight")):
            std /= math.sqrt(2 * shape.n_layers)
        with torch.no_grad():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                parameter.normal_(0.0, std, generator=generator)
