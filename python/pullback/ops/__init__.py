"""The kernels: exact top-k, sparse decode and its gradients, and the contraction of attribution.

Each op has a reference in plain torch (`reference`), a compiled CPU version, and where it pays a GPU version; all carry
gradients and work under `torch.compile`.
"""

import torch as _torch  # noqa: F401  before _C: both then share one OpenMP runtime

from .coactivation import Coactivation, PairSums
from .contraction import contract, contract_topk
from .cpu.encoders import ScreenCounts, screen_counts
from .cpu.pages import on_huge_pages
from .dispatch import available_backends, available_isas, describe, isa, set_isa, use_backend
from .encoders import batch_topk_encode, threshold_encode
from .functional import decode_csr, decode_topk, sampled_dot, segment_outer, topk_encode, topk_select
from .gradient import (
    DictionaryParams,
    SparseGradient,
    adam_,
    column_moments,
    decode_residual,
    dense_adam_,
    feature_order,
    gradient_bound,
    gradient_norm,
)
from .pullbacks import top_pullbacks
from .screen import Screen
from .sparse import SparseActivations

__all__ = [
    "Coactivation",
    "DictionaryParams",
    "PairSums",
    "Screen",
    "ScreenCounts",
    "SparseActivations",
    "SparseGradient",
    "adam_",
    "available_backends",
    "available_isas",
    "batch_topk_encode",
    "column_moments",
    "contract",
    "contract_topk",
    "decode_csr",
    "decode_residual",
    "decode_topk",
    "dense_adam_",
    "describe",
    "feature_order",
    "gradient_bound",
    "gradient_norm",
    "isa",
    "on_huge_pages",
    "sampled_dot",
    "screen_counts",
    "segment_outer",
    "set_isa",
    "threshold_encode",
    "top_pullbacks",
    "topk_encode",
    "topk_select",
    "use_backend",
]
