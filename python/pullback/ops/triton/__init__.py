"""Triton backend. Importing this module imports triton; the dispatcher does so only when it is there."""

from ..gpu.adam import dense_adam_
from .encoder import encode_gemm, round_rows, topk_exhaust_, topk_settle
from .launch import INTERPRETED, available
from .moments import column_moments
from .sparse import contract, decode_csr, sampled_dot, segment_outer

__all__ = [
    "INTERPRETED",
    "available",
    "column_moments",
    "contract",
    "decode_csr",
    "dense_adam_",
    "encode_gemm",
    "round_rows",
    "sampled_dot",
    "segment_outer",
    "topk_exhaust_",
    "topk_settle",
]
