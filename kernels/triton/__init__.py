"""Triton kernels. Installed as ``pullback.kernels.triton``; importing it needs triton, but no GPU.

Each module holds one kernel family and an ``AOT_CASES`` list: the specialisations that ``tools/aot.py`` compiles
ahead of time, so that a machine without a GPU still notices a kernel that stops compiling or starts to spill.
"""

from .aot_case import AotCase
from .contract import contract_config, contract_kernel
from .encode_gemm import (
    ENCODE_TILES,
    MAXIMA_WIDTH,
    encode_gemm_config,
    encode_gemm_descriptor_kernel,
    encode_gemm_kernel,
)
from .entry_tiles import entry_tile_count
from .moments import column_moments_config, column_moments_kernel
from .round_rows import round_rows_config, round_rows_kernel
from .sampled_dot import sampled_dot_config, sampled_dot_kernel
from .settle import (
    exhaust_config,
    exhaust_kernel,
    narrow_kernel,
    pick_kernel,
    rescore_config,
    rescore_kernel,
    settle_config,
)
from .sparse_decode import decode_csr_kernel, launch_config

__all__ = [
    "ENCODE_TILES",
    "MAXIMA_WIDTH",
    "AotCase",
    "column_moments_config",
    "column_moments_kernel",
    "contract_config",
    "contract_kernel",
    "decode_csr_kernel",
    "encode_gemm_config",
    "encode_gemm_descriptor_kernel",
    "encode_gemm_kernel",
    "entry_tile_count",
    "exhaust_config",
    "exhaust_kernel",
    "launch_config",
    "narrow_kernel",
    "pick_kernel",
    "rescore_config",
    "rescore_kernel",
    "round_rows_config",
    "round_rows_kernel",
    "sampled_dot_config",
    "sampled_dot_kernel",
    "settle_config",
]
