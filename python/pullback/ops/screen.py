"""The bfloat16 shadow of an encoder, from which the exact features are found at the price of a bfloat16 GEMM.

`Screen` holds what the error bound of that GEMM has to know of the weights: see docs/CERTIFIED_SCREEN.md.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from pullback import _C

from . import arguments
from .cpu import screen as kernels
from .cpu.pages import on_huge_pages


class Screen:
    """bfloat16 shadow of W_enc (float32, on the CPU), with a norm and a rounding residual a row.

    It serves the exact encoders, `topk_encode(..., screen=screen)` and the others, for as long as it follows the
    weights: `refresh` after each change. The fused optimizer does so by itself.

    Attributes:
        W16: BFloat16[Tensor, "F d_in"], the nearest bfloat16 of W_enc, subnormal results flushed to 0.
        norms: Float32[Tensor, "F"], not below ||W_enc[f]||.
        rests: Float32[Tensor, "F"], not below ||W_enc[f] - W16[f]||.

    Raises:
        ValueError: W_enc is not a float32 matrix on the CPU.
    """

    def __init__(self, W_enc: Tensor) -> None:
        if W_enc.ndim != 2 or W_enc.dtype != torch.float32 or not W_enc.is_cpu:
            raise ValueError(
                "Screen: W_enc must be a float32 matrix [F, d_in] on the CPU, "
                f"got {W_enc.dtype} {list(W_enc.shape)} on {W_enc.device}"
            )
        F, d_in = W_enc.shape
        self.W16 = on_huge_pages(W_enc.new_empty(F, d_in, dtype=torch.bfloat16))
        self.norms, self.rests = W_enc.new_empty(F), W_enc.new_empty(F)
        self.refresh(W_enc)

    def refresh(self, W_enc: Tensor) -> None:
        """Follow W_enc after it has changed."""
        rows = W_enc.detach()
        kernels.shadow_rows(rows if rows.stride(-1) == 1 else rows.contiguous(), self.W16, self.norms, self.rests)
        self.mark(W_enc)

    def mark(self, W_enc: Tensor) -> None:
        """The shadow is that of W_enc as it is now."""
        self._state = _state(W_enc)

    def follows(self, W_enc: Tensor) -> bool:
        """Whether W_enc is the tensor that was followed, unchanged."""
        return _state(W_enc) == self._state

    def must_follow(self, op: str, W_enc: Tensor) -> None:
        """Raise ValueError, in the name of an op, where this is no shadow of W_enc as it is."""
        arguments.check(self.W16.shape == W_enc.shape, op, f"screen must be of W_enc {list(W_enc.shape)}", self.W16)
        if self.is_stale(W_enc):
            raise ValueError(f"{op}: W_enc has changed since the screen was made; call screen.refresh(W_enc)")

    def is_stale(self, W_enc: Tensor) -> bool:
        """Whether W_enc is the tensor that was followed, and has changed since."""
        address, version = _state(W_enc)
        return address == self._state[0] and version != self._state[1]


def _state(W: Tensor) -> tuple[int, int | None]:
    """Where a tensor lies, and how often it was changed; inference tensors do not count."""
    return W.data_ptr(), None if W.is_inference() else W._version


@lru_cache
def _torch_multiplies_bf16() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def multiplies_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32, and the kernels' instruction set allows it."""
    fast = _C.cpu_features().get("avx512bf16", False) or has_amx()
    return makes_tiles() or (fast and _C.isa() == "avx512" and _torch_multiplies_bf16())


def makes_tiles() -> bool:
    """Whether the kernels make products of bfloat16 themselves, in tiles of AMX, and screen them on the way."""
    return _C.has_tiles()


def has_amx() -> bool:
    """Whether this CPU has units for tiles of bfloat16 (AMX)."""
    return _C.cpu_features().get("amx-bf16", False)
