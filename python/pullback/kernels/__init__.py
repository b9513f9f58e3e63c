"""Accelerator kernels, installed beside the package: `pullback.kernels.triton`."""
