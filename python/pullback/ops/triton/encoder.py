"""The pieces of a GPU encoder in Triton: see `ops.gpu.encoder` for how they fit together."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import INTERPRETED, blocks, check_placed, check_programs, dot_operand, kernels

SHARED_BYTES = 227 * 1024  # that a multiprocessor with descriptors has for tiles

_INTERPRETED_TILE = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 16, "GROUP": 2, "num_warps": 4, "num_stages": 1}


def encode_gemm(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, h: Tensor, maxima: Tensor, config: dict[str, int] | None = None
) -> None:
    """h = x W_enc^T + b_enc, and the maximum of every 64 columns of it, NaN above all.

    x Float 'n d', W_enc Float 'f d', both float16 or both bfloat16, b_enc Float 'f'; h Float 'n f', maxima like h,
    'n ceil(f/64)', contiguous. Products and sums in float32.

    Raises:
        ValueError: tensors not on one CUDA device, or operands of two dtypes.
    """
    check_placed("encode_gemm", x, W_enc, b_enc, h, maxima)
    if x.dtype != W_enc.dtype or x.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"encode_gemm (triton): x and W_enc must both be float16 or both bfloat16, got {x.dtype} and {W_enc.dtype}"
        )
    (n, d), F = x.shape, W_enc.shape[0]
    x, W_enc = dot_operand(x), dot_operand(W_enc)
    descriptors = (INTERPRETED or 90 <= _arch(x) < 120) and all(_describable(t) for t in (x, W_enc, h))
    if config is None or not descriptors:
        config = kernels.encode_gemm_config(descriptors)
    if INTERPRETED:
        config = _INTERPRETED_TILE | ({"FLATTEN": False} if descriptors else {})
    assert config is not None
    M, N, K = (config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    tiles = blocks(n, M) * blocks(F, N)
    check_programs("encode_gemm", tiles)
    common = {"WIDTH": kernels.MAXIMA_WIDTH, **config}
    with torch.cuda.device_of(x):
        if descriptors:
            from triton.tools.tensor_descriptor import TensorDescriptor

            x_desc, W_desc, h_desc = (
                TensorDescriptor.from_tensor(t, block) for t, block in ((x, [M, K]), (W_enc, [N, K]), (h, [M, N]))
            )
            programs = min(tiles, 3 if INTERPRETED else _resident(x, config))
            kernels.encode_gemm_descriptor_kernel[(programs,)](x_desc, W_desc, b_enc, h_desc, maxima, n, F, d, **common)
        else:
            strides = x.stride(0), W_enc.stride(0), h.stride(0)
            kernels.encode_gemm_kernel[(tiles,)](x, W_enc, b_enc, h, maxima, n, F, d, *strides, **common)


def round_rows(t: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """scale * t in float16, the norms of its rows before, and of what that took: see `reference.round_rows`."""
    check_placed("round_rows", t, scale)
    n, d = t.shape
    half = torch.empty(n, d, dtype=torch.float16, device=t.device)
    norms, rests = torch.empty(2, n, device=t.device)
    if n > 0:
        with torch.cuda.device_of(t):
            kernels.round_rows_kernel[(n,)](
                t, scale, half, norms, rests, d, t.stride(0), **kernels.round_rows_config(d)
            )
    return half, norms, rests


def topk_settle(
    candidates: Tensor, features: Tensor, slack: Tensor, relative: float,
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The exact top k among the candidates of each row: see `reference.topk_settle`."""
    check_placed("topk_settle", candidates, features, slack, x, W_enc, b_enc)
    (n, C), (F, d) = candidates.shape, W_enc.shape
    live = torch.empty_like(features)
    uncertain = torch.empty(n, dtype=torch.int8, device=x.device)
    exact = torch.empty(n, C, device=x.device)
    values, indices = torch.empty(n, k, device=x.device), torch.empty(n, k, dtype=torch.int32, device=x.device)
    if n == 0:
        return values, indices, uncertain
    block, tile = kernels.settle_config(C), kernels.rescore_config(W_enc.element_size())
    programs = n * blocks(C, tile["BLOCK_F"])
    check_programs("topk_settle", programs)
    with torch.cuda.device_of(x):
        candidates, features = candidates.contiguous(), features.contiguous()
        kernels.narrow_kernel[(n,)](
            candidates, features, slack, live, uncertain, C, k, relative, COMPLETE=C == F, **block
        )
        kernels.rescore_kernel[(programs,)](live, x, W_enc, b_enc, exact, C, d, x.stride(0), W_enc.stride(0), **tile)
        kernels.pick_kernel[(n,)](live, exact, values, indices, C, k, RELU=relu, **block)
    return values, indices, uncertain


def topk_exhaust_(
    values: Tensor, indices: Tensor, uncertain: Tensor, x: Tensor, W_enc: Tensor, b_enc: Tensor, relu: bool
) -> None:
    """Evaluate every feature of the uncertain rows, in place: see `reference.topk_exhaust_`."""
    check_placed("topk_exhaust_", values, indices, uncertain, x, W_enc, b_enc)
    (n, k), (F, d) = values.shape, W_enc.shape
    if n == 0:
        return
    strides = x.stride(0), W_enc.stride(0)
    with torch.cuda.device_of(x):
        kernels.exhaust_kernel[(n,)](
            uncertain, x, W_enc, b_enc, values, indices, F, d, k, *strides, RELU=relu, **kernels.exhaust_config(k)
        )


def _describable(t: Tensor) -> bool:
    """Whether a tensor descriptor can stand for `t`: 16-byte rows and address, and something in it."""
    rows = t.stride(0) * t.element_size()
    return t.numel() > 0 and t.data_ptr() % 16 == 0 and rows % 16 == 0 and t.stride(0) >= t.shape[1]


def _arch(t: Tensor) -> int:
    major, minor = torch.cuda.get_device_capability(t.device)
    return 10 * major + minor


def _resident(t: Tensor, config: dict[str, int]) -> int:
    """How many programs of the GEMM run at a time on the device of `t`: shared memory settles it."""
    M, N, K = (config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    needed = (config["num_stages"] * (M + N) * K + M * N) * t.element_size()
    return torch.cuda.get_device_properties(t.device).multi_processor_count * max(1, min(2, SHARED_BYTES // needed))
