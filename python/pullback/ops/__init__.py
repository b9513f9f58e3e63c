"""The kernels: exact top-k, sparse decode and its gradients, and the contraction of attribution.

Each op has a reference in plain torch (`reference`), a compiled CPU version, and where it pays a GPU version; all carry
gradients and work under `torch.compile`.
"""

from .dispatch import available_backends, available_isas, describe, isa, set_isa, use_backend
from .functional import contract, decode_csr, decode_topk, sampled_dot, segment_outer, topk_encode, topk_select
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
from .sparse import SparseActivations

__all__ = [
    "DictionaryParams",
    "SparseActivations",
    "SparseGradient",
    "adam_",
    "available_backends",
    "available_isas",
    "column_moments",
    "contract",
    "decode_csr",
    "decode_residual",
    "decode_topk",
    "dense_adam_",
    "describe",
    "feature_order",
    "gradient_bound",
    "gradient_norm",
    "isa",
    "sampled_dot",
    "segment_outer",
    "set_isa",
    "topk_encode",
    "topk_select",
    "use_backend",
]
