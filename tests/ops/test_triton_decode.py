"""The Triton decode: interpreted everywhere, compiled where there is a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.ops.decode_cases import Decode, assert_decodes, damaged_rows, make_decode
from tests.ops.interpreter import run_interpreted

pytest.importorskip("triton", reason="triton is not installed")

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_in_the_interpreter() -> None:
    run_interpreted("triton_decode_interpreted.py")


def test_cpu_tensors_are_refused_outside_the_interpreter() -> None:
    from pullback.ops import triton as backend

    with pytest.raises(ValueError, match="must be on a CUDA device, got cpu"):
        backend.decode_csr(*make_decode([1], F=2, d=4, dtype=torch.float32).arguments())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("d", [1, 33, 768, 2304])
class TestOnGpu:
    pytestmark = on_gpu

    @pytest.mark.parametrize("pad", [0, 1, 8])
    def test_matches_dense_float64(self, dtype: torch.dtype, d: int, pad: int) -> None:
        from pullback.ops import triton as backend

        case = make_decode([0, 64, 1, 32, 200, 0], F=500, d=d, dtype=dtype, pad=pad)
        assert_decodes(backend.decode_csr(*case.to("cuda").arguments()), case)

    def test_repeats_bit_for_bit(self, dtype: torch.dtype, d: int) -> None:
        from pullback.ops import triton as backend

        case = make_decode([64] * 300, F=2000, d=d, dtype=dtype).to("cuda")
        assert torch.equal(backend.decode_csr(*case.arguments()), backend.decode_csr(*case.arguments()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("name", "case", "rows"), damaged_rows(), ids=[name for name, *_ in damaged_rows()])
def test_damage_shows_as_nan_on_gpu(name: str, case: Decode, rows: list[int]) -> None:  # noqa: ARG001
    from pullback.ops import triton as backend

    assert bool(backend.decode_csr(*case.to("cuda").arguments())[rows].isnan().all())
