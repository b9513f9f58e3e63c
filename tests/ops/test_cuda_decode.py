"""The CUDA module, importable and strict without a GPU, and its decode, right on one and on the host harness."""

from __future__ import annotations

import shutil
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.ops.conftest import Cuda
from tests.ops.decode_cases import Decode, assert_decodes, damaged_rows, make_decode


@pytest.fixture(scope="module")
def compiled() -> ModuleType:
    """The module as nvcc compiled it."""
    return pytest.importorskip(
        "pullback._cuda",
        reason="pullback was built without CUDA" + ("" if shutil.which("nvcc") else ": no nvcc on this machine"),
    )


def call(compiled: ModuleType, **changes: Any) -> None:
    sizes = {"n_rows": 2, "nnz": 3, "n_features": 5, "d": 8, "W_stride": 8}
    addresses = dict.fromkeys(["indptr", "indices", "values", "W_dec", "out"], 16)
    compiled.decode_csr(**addresses | sizes | {"b_dec": 0, "W_dtype": "float32", "device": 0, "stream": 0} | changes)


def test_counts_devices_as_torch_does(compiled: ModuleType) -> None:
    assert compiled.device_count() == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"nnz": -1}, "sizes must not be negative, got n_rows=2, nnz=-1"),
        ({"d": -8}, "sizes must not be negative"),
        ({"n_features": 0}, "entries need a W_dec with rows"),
        ({"W_dtype": "int8"}, "W_dtype must be float32, float64, bfloat16 or float16, got int8"),
        ({"out": 0}, "indptr and out must not be null"),
        ({"W_dec": 0}, "indices, values and W_dec must not be null"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_impossible_arguments_are_refused(compiled: ModuleType, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(compiled, **changes)


@pytest.mark.parametrize("changes", [{"n_rows": 0}, {"d": 0}], ids=["no rows", "no columns"])
def test_nothing_to_do_needs_no_device(compiled: ModuleType, changes: dict[str, int]) -> None:
    call(compiled, **changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_errors_of_cuda_carry_its_words(compiled: ModuleType) -> None:
    with pytest.raises(RuntimeError, match=r"cudaGetDevice: .*\(cuda\w+\)"):
        call(compiled)


def test_cpu_tensors_are_refused(compiled: ModuleType) -> None:
    from pullback.ops import cuda as backend

    with pytest.raises(ValueError, match="must be on a CUDA device, got cpu"):
        backend.decode_csr(*make_decode([1], F=2, d=4, dtype=torch.float32).arguments())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("d", [1, 33, 768, 2304, 4104])
@pytest.mark.parametrize("pad", [0, 1, 8])
def test_matches_dense_float64(cuda: Cuda, dtype: torch.dtype, d: int, pad: int) -> None:
    case = make_decode([0, 64, 1, 32, 200, 0], F=500, d=d, dtype=dtype, pad=pad)
    on_gpu = case.to(cuda.device)
    out = cuda.ops.decode_csr(*on_gpu.arguments())
    assert_decodes(out, case)
    assert torch.equal(out, cuda.ops.decode_csr(*on_gpu.arguments()))


def test_wide_and_narrow_loads_give_the_same_bits(cuda: Cuda) -> None:
    wide = make_decode([64] * 50, F=300, d=768, dtype=torch.float32)
    narrow = make_decode([64] * 50, F=300, d=768, dtype=torch.float32, pad=1)
    outs = [cuda.ops.decode_csr(*case.to(cuda.device).arguments()) for case in (wide, narrow)]
    assert torch.equal(*outs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_runs_on_the_current_stream() -> None:
    from pullback.ops import cuda as backend

    case = make_decode([32] * 64, F=500, d=768, dtype=torch.float32)
    on_gpu = case.to("cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    values, on_gpu.values = on_gpu.values, torch.zeros_like(on_gpu.values)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a decode on another stream would read the zeros
        on_gpu.values.copy_(values)
        out = backend.decode_csr(*on_gpu.arguments())
    stream.synchronize()
    assert_decodes(out, case)


def test_offsets_beyond_31_bits(cuda: Cuda) -> None:
    case = make_decode([2, 1], F=3, d=16, dtype=torch.float16, bias=False)
    W = torch.empty(2**31 + 16, dtype=torch.float16, device=cuda.device).as_strided((3, 16), (2**30, 1))
    W.copy_(case.W_dec)
    case.indices = torch.tensor([0, 2, 2], dtype=torch.int32)
    assert_decodes(
        cuda.ops.decode_csr(
            case.indptr.to(cuda.device), case.indices.to(cuda.device), case.values.to(cuda.device), W, None
        ),
        case,
    )


@pytest.mark.parametrize(("name", "case", "rows"), damaged_rows(), ids=[name for name, *_ in damaged_rows()])
def test_damage_shows_as_nan(cuda: Cuda, name: str, case: Decode, rows: list[int]) -> None:  # noqa: ARG001
    assert bool(cuda.ops.decode_csr(*case.to(cuda.device).arguments())[rows].isnan().all())
