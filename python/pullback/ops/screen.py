"""The bfloat16 shadow of an encoder, from which the exact features are found at the price of a bfloat16 GEMM.

`Screen` holds what the error bound of that GEMM has to know of the weights: see docs/CERTIFIED_SCREEN.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _cpu


class Screen:
    """bfloat16 shadow of W_enc (float32, on the CPU), with a norm and a rounding residual a row.

    Attributes:
        W16: BFloat16[Tensor, "F d_in"], the nearest bfloat16 of W_enc, subnormal results flushed to 0.
        norms: Float32[Tensor, "F"], not below ||W_enc[f]||.
        rests: Float32[Tensor, "F"], not below ||W_enc[f] - W16[f]||.
    """

    def __init__(self, W_enc: Tensor) -> None:
        F, d_in = W_enc.shape
        self.W16 = torch.empty(F, d_in, dtype=torch.bfloat16)
        self.norms, self.rests = torch.empty(F), torch.empty(F)
        self.refresh(W_enc)

    def refresh(self, W_enc: Tensor) -> None:
        """Follow W_enc after it has changed."""
        _cpu.shadow_rows(W_enc.detach(), self.W16, self.norms, self.rests)
