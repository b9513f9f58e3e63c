"""What the GPU backends refuse before they touch memory."""

from __future__ import annotations

import pytest
import torch

from pullback.ops.gpu.checks import check_decode_csr
from tests.ops.decode_cases import make_decode


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("indptr", torch.zeros(3), r"indptr must be int64 \[N\+1\], got torch.float32 \[3\]"),
        ("indptr", torch.zeros(0, dtype=torch.int64), r"indptr must be int64 \[N\+1\], got torch.int64 \[0\]"),
        ("indices", torch.zeros(3, dtype=torch.int64), r"indices must be int32 \[nnz\], got torch.int64 \[3\]"),
        ("values", torch.zeros(4), r"values must be floating \[nnz\]=\[3\], got torch.float32 \[4\]"),
        ("values", torch.zeros(3, dtype=torch.int32), r"values must be floating \[nnz\]=\[3\], got torch.int32 \[3\]"),
        ("values", torch.zeros(3, dtype=torch.float64), "values and W_dec must both be float64 or neither"),
        ("values", torch.zeros(3, device="meta"), r"one device, got \['cpu', 'meta'\]"),
        ("W_dec", torch.zeros(4), r"W_dec must be floating \[F, d\], got torch.float32 \[4\]"),
        ("W_dec", torch.zeros(4, 5).T, "feature-major, not a transposed view"),
        ("W_dec", torch.zeros(0, 4), "3 entries but W_dec has no rows"),
        ("b_dec", torch.zeros(5), r"b_dec must be floating \[d\]=\[4\], got torch.float32 \[5\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(field: str, value: torch.Tensor, sentence: str) -> None:
    case = make_decode([1, 2], F=5, d=4, dtype=torch.float32)
    setattr(case, field, value)
    with pytest.raises(ValueError, match=rf"decode_csr \(cuda\): .*{sentence}"):
        check_decode_csr("cuda", *case.arguments())


@pytest.mark.parametrize(
    ("weights", "sums"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_sums_are_at_least_float32(weights: torch.dtype, sums: torch.dtype) -> None:
    assert check_decode_csr("cuda", *make_decode([1, 2], F=5, d=4, dtype=weights, pad=3).arguments()) == sums
