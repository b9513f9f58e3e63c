"""A transformer's forward pass up to its MLPs, without hooks, attention patterns or logits: what training harvests.

It is made of the weights that TransformerLens shows, for the wirings that most models have, and knows nothing of what
is rare (soft caps, windows, experts): `unhooked` compares it with the model before it is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.lens.heads import score_scale
from pullback.lens.weights import LN, RMS, Norm, read_norm

if TYPE_CHECKING:
    from pullback.lens.adapter import Lens

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,  # of what nobody else holds
    "silu": F.silu,
    "gelu": F.gelu,
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), partial(F.gelu, approximate="tanh")),
}


class NotPlain(Exception):
    """The model has, or lacks, something that this pass knows nothing of."""


@dataclass(frozen=True)
class TurnedNeighbours:
    """Rotary positions that turn pairs of neighbouring entries.

    turn: Complex[Tensor, 'T d_rot/2'] of modulus 1, for the first d_rot entries of a head.
    """

    turn: Tensor

    def turn_(self, x: Tensor) -> None:
        """Turn Float[Tensor, 'B heads T d_head'] in place."""
        T, pairs = x.shape[-2], self.turn.shape[-1]
        torch.view_as_complex(x[..., : 2 * pairs].unflatten(-1, (-1, 2))).mul_(self.turn[:T])


@dataclass(frozen=True)
class TurnedHalves:
    """Rotary positions that turn entries half of d_rot apart.

    cos, sin: Float[Tensor, 'T d_rot/2'] of the angles, for the first d_rot entries of a head.
    """

    cos: Tensor
    sin: Tensor

    def turn_(self, x: Tensor) -> None:
        """Turn Float[Tensor, 'B heads T d_head'] in place."""
        T, half = x.shape[-2], self.cos.shape[-1]
        cos, sin = self.cos[:T], self.sin[:T]
        first, second = x[..., : 2 * half].chunk(2, dim=-1)
        turned = first * cos - second * sin
        second.mul_(cos).addcmul_(first, sin)
        first.copy_(turned)


Rotary = TurnedNeighbours | TurnedHalves


@dataclass(frozen=True)
class PlainNorm:
    norm: Norm
    eps: float

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Before the affine, and after it."""
        width = (x.shape[-1],)
        if self.norm.kind == LN:
            normalized = F.layer_norm(x, width, eps=self.eps)
        else:
            normalized = F.rms_norm(x, width, eps=self.eps) if self.norm.kind == RMS else x
        return normalized, self.norm.affine(normalized)


@dataclass(frozen=True)
class Linear:
    """x W^T + b, with W of (d_out, d_in)."""

    W: Tensor
    b: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.W, self.b)


@dataclass(frozen=True)
class PlainAttention:
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    d_head: int
    scale: float
    rotary: Rotary | None

    def __call__(self, x: Tensor) -> Tensor:
        """Causal attention on Float[Tensor, 'B T d_model']."""
        q, k, v = (read(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for read in (self.q, self.k, self.v))
        if self.rotary is not None:
            self.rotary.turn_(q)
            self.rotary.turn_(k)
        shared = q.shape[1] != k.shape[1]
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=shared)
        return self.o(z.transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class PlainMLP:
    enter: Linear
    leave: Linear
    gate: Linear | None
    act: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        inner = self.enter(x)
        return self.leave(self.act(inner) if self.gate is None else self.act(self.gate(x)).mul_(inner))


@dataclass(frozen=True)
class PlainBlock:
    ln1: PlainNorm
    attn: PlainAttention
    ln2: PlainNorm
    mlp: PlainMLP
    parallel: bool

    def __call__(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The stream behind the block, and what stands at its hooks, by their names inside it."""
        attn_out = self.attn(self.ln1(x)[1])
        mid = x + attn_out
        normalized, entering = self.ln2(x if self.parallel else mid)
        mlp_out = self.mlp(entering)
        inside = {"hook_resid_mid": mid, "ln2.hook_normalized": normalized, "hook_attn_out": attn_out}
        inside |= dict.fromkeys(("ln2.hook_out", "mlp.hook_in"), entering)
        return mid + mlp_out, inside | dict.fromkeys(("hook_mlp_out", "mlp.hook_out"), mlp_out)


@dataclass(frozen=True)
class PlainPass:
    W_E: Tensor
    W_pos: Tensor | None
    blocks: list[PlainBlock]

    def __call__(self, tokens: Tensor, sites: Collection[str]) -> dict[str, Tensor]:
        """What stands at sites `blocks.{l}.{hook}` for Int64[Tensor, 'B T']; ends behind the last of them."""
        x = F.embedding(tokens, self.W_E)
        if self.W_pos is not None:
            x = x + self.W_pos[: tokens.shape[1]]
        found: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            x, inside = block(x)
            found |= {site: at for hook, at in inside.items() if (site := f"blocks.{i}.{hook}") in sites}
            if len(found) == len(sites):
                break
        return found


def plain_pass(lens: Lens, rotary: Rotary | None) -> PlainPass:
    """The pass of this model. Raises NotPlain where its parts are not those of a plain transformer."""
    model = lens.model
    W_pos = _get(model, "W_pos") if lens.positional == "learned" else None
    return PlainPass(lens.W_E, W_pos, [_block(lens, block, rotary) for block in model.blocks])


def _block(lens: Lens, block: Any, rotary: Rotary | None) -> PlainBlock:
    eps = float(_get(lens.model.cfg, "eps"))
    ln1, ln2 = (PlainNorm(read_norm(getattr(block, name, None)), eps) for name in ("ln1", "ln2"))
    return PlainBlock(ln1, _attention(lens, _get(block, "attn"), rotary), ln2, _mlp(lens, block), lens.parallel)


def _attention(lens: Lens, attn: Any, rotary: Rotary | None) -> PlainAttention:
    def reads(name: str) -> Linear:
        """From W (heads, d_model, d_head) and b (heads, d_head), which HookedTransformer repeats for grouped heads."""
        W, b = (getattr(attn, f"_{kind}_{name}", getattr(attn, f"{kind}_{name}", None)) for kind in ("W", "b"))
        W = _tensor(W, 3, f"attn.W_{name}")
        return Linear(W.transpose(1, 2).flatten(0, 1), None if b is None else b.detach().flatten())

    b_O = getattr(attn, "b_O", None)
    W_O = _tensor(getattr(attn, "W_O", None), 3, "attn.W_O")
    return PlainAttention(
        *(reads(name) for name in "QKV"),
        o=Linear(W_O.flatten(0, 1).T, None if b_O is None else b_O.detach()),
        d_head=lens.d_head,
        scale=score_scale(attn, lens.d_head),
        rotary=rotary,
    )


def _mlp(lens: Lens, block: Any) -> PlainMLP:
    mlp, act = _get(block, "mlp"), str(_get(lens.model.cfg, "act_fn"))
    if act not in ACTIVATIONS:
        raise NotPlain(act)

    def linear(name: str) -> Linear:
        """W stands as (d_in, d_out)."""
        b = getattr(mlp, f"b_{name}", None)
        return Linear(_tensor(getattr(mlp, f"W_{name}", None), 2, f"mlp.W_{name}").T, None if b is None else b.detach())

    gate = linear("gate") if lens.gated else None
    return PlainMLP(linear("in"), linear("out"), gate, ACTIVATIONS[act])


def _get(parent: Any, name: str) -> Any:
    found = getattr(parent, name, None)
    if found is None:
        raise NotPlain(name)
    return found.detach() if isinstance(found, Tensor) else found


def _tensor(found: Any, ndim: int, name: str) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim != ndim:
        raise NotPlain(name)
    return found.detach()
