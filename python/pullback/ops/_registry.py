"""The ops as PyTorch sees them: `torch.ops.pullback.*` with fake tensors and gradients.

`Library.define/impl` rather than `custom_op`: a call costs half as much. The three sparse ops are closed under
differentiation (each gradient is one of the others), so gradients of gradients come for free:

    y = decode_csr(v, W)       dv = sampled_dot(dy, W)       dW = segment_outer(v, dy)
    s = sampled_dot(g, W)      dg = decode_csr(ds, W)        dW = segment_outer(ds, g)
    O = segment_outer(v, x)    dv = sampled_dot(x, dO)       dx = decode_csr(v, dO)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _encoder, cpu, dispatch
from .cpu.encoders import Factor

_lib = torch.library.Library("pullback", "DEF")
_ops = torch.ops.pullback

_lib.define("topk_select(Tensor h, int k, bool relu) -> (Tensor, Tensor)")
_lib.define(
    "topk_encode(Tensor x, Tensor W_enc, Tensor b_enc, int k, bool relu, Tensor? W16=None, Tensor? norms=None, "
    "Tensor? rests=None) -> (Tensor, Tensor)"
)
_lib.define("decode_csr(Tensor indptr, Tensor indices, Tensor values, Tensor W_dec, Tensor? b_dec) -> Tensor")
_lib.define("sampled_dot(Tensor g, Tensor W, Tensor indptr, Tensor indices) -> Tensor")
_lib.define("segment_outer(Tensor indptr, Tensor indices, Tensor values, Tensor x, SymInt n_features) -> Tensor")
_lib.define("contract(Tensor G, Tensor indptr, Tensor indices, Tensor values, Tensor W_dec) -> Tensor")
_lib.define("contract_into(Tensor(a!) out, Tensor G, Tensor indptr, Tensor indices, Tensor values, Tensor W_dec) -> ()")

# ---- implementations -------------------------------------------------------------------------------------------------


def _encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    relu: bool,
    W16: Tensor | None = None,
    norms: Tensor | None = None,
    rests: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    shadow = None if W16 is None or norms is None else Factor(W16, norms, rests)
    return _encoder.topk_encode(x, W_enc, b_enc, k, relu, shadow)


def _dispatched(op: str, device_of: int) -> Any:
    """An implementation that asks `dispatch` at every call, by the device of argument `device_of`."""

    def run(*args: Any) -> Any:
        return dispatch.lookup(op, args[device_of].device)(*args)

    return run


def _contract_into(out: Tensor, G: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor) -> None:
    contract = dispatch.lookup("contract", G.device)
    if contract is cpu.contract:
        return cpu.contract_into(out, G, indptr, indices, values, W_dec)
    for layer, gradient in enumerate(G):
        out += contract(gradient, indptr, indices, values, W_dec[:, layer])
    return None


_lib.impl("topk_encode", _encode, "CompositeExplicitAutograd")
_lib.impl("contract_into", _contract_into, "CompositeExplicitAutograd")
for _name, _argument in {
    "topk_select": 0,
    "decode_csr": 3,
    "sampled_dot": 0,
    "segment_outer": 3,
    "contract": 0,
}.items():
    _lib.impl(_name, _dispatched(_name, _argument), "CompositeExplicitAutograd")


# ---- shapes without data ---------------------------------------------------------------------------------------------


@torch.library.register_fake("pullback::topk_select", lib=_lib)
def _(h: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return h.new_empty(h.shape[0], k), h.new_empty(h.shape[0], k, dtype=torch.int32)


@torch.library.register_fake("pullback::topk_encode", lib=_lib)
def _(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool, *shadow: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    dtype = torch.promote_types(W_enc.dtype, torch.float32)
    return x.new_empty(x.shape[0], k, dtype=dtype), x.new_empty(x.shape[0], k, dtype=torch.int32)


@torch.library.register_fake("pullback::decode_csr", lib=_lib)
def _(indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor | None) -> Tensor:  # noqa: ARG001
    return values.new_empty(indptr.shape[0] - 1, W_dec.shape[1])


@torch.library.register_fake("pullback::sampled_dot", lib=_lib)
def _(g: Tensor, W: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:  # noqa: ARG001
    return g.new_empty(indices.shape[0], dtype=torch.promote_types(g.dtype, torch.float32))


@torch.library.register_fake("pullback::segment_outer", lib=_lib)
def _(indptr: Tensor, indices: Tensor, values: Tensor, x: Tensor, n_features: int) -> Tensor:  # noqa: ARG001
    return x.new_empty(n_features, x.shape[1], dtype=torch.promote_types(values.dtype, x.dtype))


@torch.library.register_fake("pullback::contract", lib=_lib)
def _(G: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:  # noqa: ARG001
    return values.new_empty(G.shape[0], indices.shape[0])


@torch.library.register_fake("pullback::contract_into", lib=_lib)
def _(out: Tensor, G: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor) -> None:  # noqa: ARG001
    return None


# ---- gradients -------------------------------------------------------------------------------------------------------


def _live(grad: Tensor, values: Tensor, relu: bool) -> Tensor:
    """The gradient of the slots: an empty slot (value 0 after the ReLU) has gradient 0."""
    return torch.where(values <= 0, 0, grad) if relu else grad


def _topk_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    h, _, ctx.relu = inputs
    ctx.shape = h.shape
    ctx.save_for_backward(*output)
    ctx.set_materialize_grads(True)


def _topk_backward(ctx: Any, grad: Tensor, _: Any) -> tuple:
    values, indices = ctx.saved_tensors
    dense = grad.new_zeros(ctx.shape)
    return dense.scatter(1, indices.long(), _live(grad, values, ctx.relu)), None, None


def _encode_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, W_enc, _, _, ctx.relu, *_shadow = inputs
    ctx.save_for_backward(x, W_enc, *output)


def _encode_backward(ctx: Any, grad: Tensor, _: Any) -> tuple:
    x, W_enc, values, indices = ctx.saved_tensors
    (n, k), F = values.shape, W_enc.shape[0]
    indptr = regular_indptr(n, k, indices.device)
    ids, dh = indices.reshape(-1), _live(grad, values, ctx.relu).reshape(-1)
    need_x, need_W, need_b, *_rest = ctx.needs_input_grad
    dx = _ops.decode_csr(indptr, ids, dh, W_enc, None) if need_x else None
    dW = _ops.segment_outer(indptr, ids, dh, x, F) if need_W else None
    # The bias is a weight of an input that is always 1.
    db = _ops.segment_outer(indptr, ids, dh, x.new_ones(n, 1), F)[:, 0] if need_b else None
    return dx, dW, db, None, None, None, None, None


def _decode_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:  # noqa: ARG001
    indptr, indices, values, W_dec, _ = inputs
    ctx.save_for_backward(indptr, indices, values, W_dec)


def _decode_backward(ctx: Any, grad: Tensor) -> tuple:
    indptr, indices, values, W_dec = ctx.saved_tensors
    _, _, need_values, need_W, need_b = ctx.needs_input_grad
    grad = grad.contiguous()
    dvalues = _ops.sampled_dot(grad, W_dec, indptr, indices) if need_values else None
    # The sums are float32 where a GPU reads 16-bit weights.
    dW = _ops.segment_outer(indptr, indices, values, grad, W_dec.shape[0]).to(W_dec.dtype) if need_W else None
    return None, None, dvalues, dW, grad.sum(0) if need_b else None


def _sampled_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _sampled_backward(ctx: Any, grad: Tensor) -> tuple:
    g, W, indptr, indices = ctx.saved_tensors
    need_g, need_W, *_rest = ctx.needs_input_grad
    grad = grad.contiguous()
    dg = _ops.decode_csr(indptr, indices, grad, W, None) if need_g else None
    dW = _ops.segment_outer(indptr, indices, grad, g, W.shape[0]).to(W.dtype) if need_W else None
    return dg, dW, None, None


def _segment_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:4])


def _segment_backward(ctx: Any, grad: Tensor) -> tuple:
    indptr, indices, values, x = ctx.saved_tensors
    _, _, need_values, need_x, _ = ctx.needs_input_grad
    grad = grad.contiguous()
    dvalues = _ops.sampled_dot(x, grad, indptr, indices) if need_values else None
    dx = _ops.decode_csr(indptr, indices, values, grad, None) if need_x else None
    return None, None, dvalues, dx, None


def regular_indptr(n: int, k: int, device: torch.device) -> Tensor:
    """Row pointers of n rows of k entries: Int64[Tensor, "n+1"]."""
    return torch.arange(n + 1, device=device) * k


for _name, _setup, _backward in [
    ("topk_select", _topk_setup, _topk_backward),
    ("topk_encode", _encode_setup, _encode_backward),
    ("decode_csr", _decode_setup, _decode_backward),
    ("sampled_dot", _sampled_setup, _sampled_backward),
    ("segment_outer", _segment_setup, _segment_backward),
]:
    torch.library.register_autograd(f"pullback::{_name}", _backward, setup_context=_setup, lib=_lib)
