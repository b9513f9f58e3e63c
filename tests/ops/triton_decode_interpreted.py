"""The Triton decode in Triton's interpreter, on CPU tensors.

Not collected by name: interpretation is settled when the kernels are imported, so `test_triton_decode.py` runs this
file in a process of its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pullback.ops import triton as backend
from tests.ops.decode_cases import Decode, assert_decodes, damaged_rows, decodes, dense, make_decode


def test_is_interpreted() -> None:
    assert backend.INTERPRETED


# bfloat16 is only ever loaded and widened: the interpreter would multiply it wrongly.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_matches_dense_float64(dtype: torch.dtype) -> None:
    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(case=decodes(dtype))
    def check(case: Decode) -> None:
        assert_decodes(backend.decode_csr(*case.arguments()), case)

    check()


@settings(max_examples=10, deadline=None, database=None)
@given(n=st.integers(1, 4), k=st.integers(1, 40), d=st.integers(1, 140))
def test_fixed_k_is_csr_with_regular_rows(n: int, k: int, d: int) -> None:
    case = make_decode([k] * n, F=40, d=d, dtype=torch.float32, bias=False)
    assert_decodes(backend.decode_csr(*case.arguments()), case)


def test_the_same_feature_in_every_row() -> None:
    case = make_decode([1] * 5, F=7, d=70, dtype=torch.float32)
    case.indices[:] = 3
    assert_decodes(backend.decode_csr(*case.arguments()), case)


@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0]], ids=["no rows", "one empty row", "empty rows"])
@pytest.mark.parametrize("d", [0, 1, 40])
def test_nothing_to_add(counts: list[int], d: int) -> None:
    case = make_decode(counts, F=5, d=d, dtype=torch.float32)
    out = backend.decode_csr(*case.arguments())
    assert torch.equal(out.double(), dense(case)[0])


def test_no_features_at_all() -> None:
    case = make_decode([0, 0], F=0, d=8, dtype=torch.float32)
    assert torch.equal(backend.decode_csr(*case.arguments()).double(), dense(case)[0])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy remarks on the NaNs
@pytest.mark.parametrize(("name", "case", "rows"), damaged_rows(), ids=[name for name, *_ in damaged_rows()])
def test_damage_shows_as_nan(name: str, case: Decode, rows: list[int]) -> None:  # noqa: ARG001
    out = backend.decode_csr(*case.arguments())
    assert bool(out[rows].isnan().all())
    assert bool(out[[n for n in range(len(out)) if n not in rows and n - 1 not in rows]].isfinite().all())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_infinite_weights_stay_in_their_rows() -> None:
    # The lanes past the end of a row read feature 0: an infinite weight there must not leak through 0 * inf.
    case = make_decode([3, 2], F=6, d=8, dtype=torch.float32)
    case.indices[:] = torch.tensor([0, 2, 4, 1, 3])
    case.W_dec[0] = torch.inf
    out = backend.decode_csr(*case.arguments())
    assert bool(out[0].isinf().all())
    assert bool(out[1].isfinite().all())


def test_offsets_beyond_31_bits() -> None:
    # Pages that nobody touches cost nothing: three rows 2^30 elements apart put the last one at element 2^31.
    W = torch.empty(2**31 + 16, dtype=torch.float16).as_strided((3, 16), (2**30, 1))
    W.copy_(torch.randn(3, 16))
    case = make_decode([2, 1], F=3, d=16, dtype=torch.float16, bias=False)
    case.W_dec, case.indices = W, torch.tensor([0, 2, 2], dtype=torch.int32)
    assert_decodes(backend.decode_csr(*case.arguments()), case)


def test_repeats_bit_for_bit() -> None:
    case = make_decode([40, 17], F=64, d=300, dtype=torch.float32)
    first, second = (backend.decode_csr(*case.arguments()) for _ in range(2))
    assert torch.equal(first, second)
