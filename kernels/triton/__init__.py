"""Triton kernels. Installed as ``pullback.kernels.triton``; importing it needs triton, but no GPU.

Each module holds one kernel family and an ``AOT_CASES`` list: the specialisations that ``tools/aot.py`` compiles
ahead of time, so that a machine without a GPU still notices a kernel that stops compiling or starts to spill.
"""

from .aot_case import AotCase
from .sparse_decode import decode_csr_kernel, launch_config

__all__ = ["AotCase", "decode_csr_kernel", "launch_config"]
