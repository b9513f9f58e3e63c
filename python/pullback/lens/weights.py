"""The weights that the linear map between features is made of, read from any TransformerLens model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

LN, RMS, NO_NORM = "LN", "RMS", "none"


@dataclass(frozen=True)
class Norm:
    """A normalisation with its denominator frozen: x -> (x - mean x) / s * w + b (RMS: no mean, no b).

    `w` and `b` are None where they are absent or the identity, that is, where the norm is *folded*.
    """

    kind: str
    w: Tensor | None
    b: Tensor | None

    @property
    def folded(self) -> bool:
        return self.w is None and self.b is None

    def centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.kind == LN else x

    def normalized(self, x: Tensor, scale: Tensor) -> Tensor:
        """Before the affine: what TransformerLens calls `hook_normalized`. Shapes (..., d), (..., 1)."""
        return self.centre(x) / scale

    def affine(self, normalized: Tensor) -> Tensor:
        y = normalized if self.w is None else normalized * self.w
        return y if self.b is None else y + self.b

    def __call__(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.affine(self.normalized(x, scale))

    def linear(self, x: Tensor) -> Tensor:
        """What a scale of 1 and no bias leave of the norm: x centred, times w."""
        centred = self.centre(x)
        return centred if self.w is None else centred * self.w

    def pullback(self, v: Tensor, scale: Tensor, *, affine: bool = True) -> Tensor:
        """Transpose of the frozen norm: v (..., d) read after it becomes the vector read before it.

        `affine=False` starts at `hook_normalized`, that is, before w. (METHODS 1.6, ln="frozen".)
        """
        if affine and self.w is not None:
            v = v * self.w
        return self.centre(v / scale)

    def bias_vector(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like) if self.b is None else self.b.to(like)

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> Norm:
        w, b = (None if t is None else t.to(device=device, dtype=dtype) for t in (self.w, self.b))
        return Norm(self.kind, w, b)


@dataclass(frozen=True)
class LayerWeights:
    """One block. n_kv < n_heads under grouped-query attention; head h reads key/value head h // (n_heads / n_kv).

    Where a norm stands behind attention, its weight and centring are multiplied into W_O and b_O: what is left of it is
    the denominator of a position, and its bias. `ln2` is the MLP's norm; `ln2_at` its module, which is ln1 where
    attention and MLP read through one norm.
    """

    ln1: Norm
    ln1_post: Norm
    ln2: Norm
    ln2_at: str
    W_V: Tensor  # (n_kv, d_model, d_head)
    b_V: Tensor  # (n_kv, d_head)
    W_O: Tensor  # (n_heads, d_head, d_model)
    b_O: Tensor  # (d_model)

    def values(self, x_ln1: Tensor) -> Tensor:
        """ln1 output (..., T, d_model) -> values (..., n_kv, T, d_head)."""
        return torch.einsum("...td,kde->...kte", x_ln1, self.W_V) + self.b_V[:, None, :]

    def attend(self, pattern: Tensor, values: Tensor) -> Tensor:
        """Pattern (..., n_heads, T_dst, T_src), values (..., n_kv, T_src, d_head) -> z W_O over all heads, (..., T_dst,
        d_model)."""
        repeats = self.W_O.shape[0] // self.W_V.shape[0]
        z = pattern @ values.repeat_interleave(repeats, dim=-3)
        return torch.einsum("...hte,hed->...td", z, self.W_O)

    def constant_values(self) -> Tensor:
        """The values of a stream of zeros: b_V, and ln1's bias through W_V. (n_kv, d_head)"""
        return torch.einsum("d,kde->ke", self.ln1.bias_vector(self.b_O), self.W_V) + self.b_V

    def norms(self) -> dict[str, Norm]:
        """`LayerNorms.by_module`."""
        return LayerNorms(self.ln1, self.ln1_post, self.ln2, self.ln2_at).by_module()

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> LayerWeights:
        tensors = {name: getattr(self, name).to(device=device, dtype=dtype) for name in ("W_V", "b_V", "W_O", "b_O")}
        norms = {name: getattr(self, name).to(dtype, device) for name in ("ln1", "ln1_post", "ln2")}
        return replace(self, **norms, **tensors)


def _identity_to_none(t: Tensor | None, neutral: float) -> Tensor | None:
    return None if t is None or bool((t == neutral).all()) else t.detach()


def read_norm(module: Any) -> Norm:
    """Norm of a `TransformerBridge` or `HookedTransformer` normalisation module (None: no norm at all)."""
    if module is None or not hasattr(module, "hook_scale"):
        return Norm(NO_NORM, None, None)
    name = type(module).__name__
    rms = bool(getattr(module, "uses_rms_norm", "RMS" in name))
    if name in ("LayerNormPre", "RMSNormPre", "LayerNormPreBridge", "RMSNormPreBridge"):
        return Norm(RMS if rms else LN, None, None)
    # HookedTransformer holds the affine as w, b; a bridge module as weight, bias of what it wraps.
    inner = getattr(module, "original_component", None) or module
    w = getattr(inner, "weight", None) if hasattr(inner, "weight") else getattr(inner, "w", None)
    b = None if rms else (getattr(inner, "bias", None) if hasattr(inner, "bias") else getattr(inner, "b", None))
    if w is None and hasattr(module, "original_component"):
        raise ValueError(
            f"lens: the norm '{module.name}' ({type(inner).__name__}) has no weights, and TransformerLens does not run "
            "such a norm with an edited scale, so it cannot be frozen; this architecture is not supported yet"
        )
    if w is not None and getattr(module, "uses_weight_offset", False):
        w = 1.0 + w
    return Norm(RMS if rms else LN, _identity_to_none(w, 1.0), _identity_to_none(b, 0.0))


def mlp_norm(block: Any) -> str:
    """The module of the norm that the MLP reads through: ln2, or ln1 where there is no other (Phi, GPT-J, Cohere)."""
    one_for_both = getattr(block, "ln2", None) is None and getattr(block, "ln1", None) is not None
    return "ln1" if one_for_both else "ln2"


class LayerNorms(NamedTuple):
    """Of one block, as in `LayerWeights`."""

    ln1: Norm
    ln1_post: Norm
    ln2: Norm
    ln2_at: str

    def by_module(self) -> dict[str, Norm]:
        """The norms whose denominators are frozen, by the names of their modules. (What an MLP writes is a leaf, so no
        norm behind it is.)"""
        return {"ln1": self.ln1, "ln1_post": self.ln1_post, self.ln2_at: self.ln2}


def read_norms(block: Any) -> LayerNorms:
    at = mlp_norm(block)
    ln1, ln1_post, ln2 = (read_norm(getattr(block, name, None)) for name in ("ln1", "ln1_post", at))
    return LayerNorms(ln1, ln1_post, ln2, at)


def read_layer(model: Any, layer: int) -> LayerWeights:
    block = model.blocks[layer]
    attn = block.attn
    # Under grouped heads HookedTransformer's W_V and b_V repeat what _W_V and _b_V hold once.
    W_V, W_O = getattr(attn, "_W_V", attn.W_V).detach(), attn.W_O.detach()
    if W_V.ndim != 3 or W_O.ndim != 3:
        raise ValueError(
            f"lens: blocks.{layer}.attn must give W_V (n_kv, d_model, d_head) and W_O (n_heads, d_head, d_model), "
            f"got {list(W_V.shape)} and {list(W_O.shape)}"
        )
    b_V = getattr(attn, "_b_V", getattr(attn, "b_V", None))
    b_O = getattr(attn, "b_O", None)
    b_O = W_O.new_zeros(W_O.shape[2]) if b_O is None else b_O.detach()
    norms = read_norms(block)
    return LayerWeights(
        *norms,
        W_V=W_V,
        b_V=W_V.new_zeros(W_V.shape[0], W_V.shape[2]) if b_V is None else b_V.detach().reshape(W_V.shape[0], -1),
        W_O=norms.ln1_post.linear(W_O),
        b_O=norms.ln1_post.linear(b_O),
    )


def mlp_input_weight(model: Any, layer: int) -> Tensor | None:
    """W_in of one MLP, whatever its orientation: only its identity matters (fingerprints)."""
    mlp = getattr(model.blocks[layer], "mlp", None)
    weight = getattr(mlp, "W_in", None)
    return None if weight is None else weight.detach()
