"""The kernels: exact top-k, sparse decode and its gradients, and the contraction of attribution.

Each op has a reference in plain torch (`reference`), a compiled CPU version, and where it pays a GPU version; all carry
gradients and work under `torch.compile`.
"""

from .coactivation import Coactivation, PairSums
from .contraction import contract, contract_topk
from .dispatch import available_backends, available_isas, describe, isa, set_isa, use_backend
from .functional import decode_csr, decode_topk, sampled_dot, segment_outer, topk_encode, topk_select
from .pullbacks import top_pullbacks
from .sparse import SparseActivations

__all__ = [
    "Coactivation",
    "PairSums",
    "SparseActivations",
    "available_backends",
    "available_isas",
    "contract",
    "contract_topk",
    "decode_csr",
    "decode_topk",
    "describe",
    "isa",
    "sampled_dot",
    "segment_outer",
    "set_isa",
    "top_pullbacks",
    "topk_encode",
    "topk_select",
    "use_backend",
]
