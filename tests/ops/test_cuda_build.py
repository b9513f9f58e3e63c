"""The CUDA kernels compile without spills and within their registers, and keep several wide loads in flight."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "kernels" / "cuda"
ARCHITECTURES = ["80", "90", "100"]
# Kernels a file compiles to, each type and width counted, and the registers they keep within: what their launch bounds
# ask for, so that enough threads stay resident.
LIMITS = {
    "sparse_decode": {"decode_csr_kernel": (8, 64)},
    "residual": {"decode_residual_kernel": (6, 64), "decode_residual_tiles": (3, 64)},
    "select": {"select_rows": (6, 64)},
    "threshold": {"count_rows": (6, 64), "compact_rows": (6, 64), "add_up": (1, 64)},
    "order": {"count_digits": (1, 64), "place_tiles": (1, 64), "move_entries": (1, 64), "find_starts": (1, 32)},
    "gradient": {
        "feature_squares": (8, 64),
        "sum_chunks": (4, 64),
        "find_owners": (1, 32),
        "sum_squares": (1, 64),
        "row_norms": (2, 64),
        "feature_bounds": (1, 64),
    },
    "adam": {"adam_features": (8, 80), "adam_constants": (1, 64)},
}


def _nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def _cuobjdump() -> str | None:
    triton = importlib.util.find_spec("triton")
    bundled = Path(triton.origin or "").parent / "backends" / "nvidia" / "bin" if triton else Path()
    return shutil.which("cuobjdump", path=str(bundled)) or shutil.which("cuobjdump")


# (file, architecture) -> its machine code and what ptxas said about it
Compile = Callable[[str, str], tuple[Path, str]]

pytestmark = pytest.mark.skipif(_nvcc() is None, reason="no nvcc on this machine")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    directory = tmp_path_factory.mktemp("cubin")
    return cache(lambda source, arch: _compile(source, arch, directory))


def _compile(source: str, arch: str, directory: Path) -> tuple[Path, str]:
    nvcc = _nvcc()
    assert nvcc is not None
    cubin = directory / f"{source}.{arch}.cubin"
    command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v", "-o", str(cubin)]
    run = subprocess.run([*command, str(SOURCES / f"{source}.cu")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return cubin, run.stdout + run.stderr


def test_every_kernel_file_has_limits() -> None:
    kernels = {path.stem for path in SOURCES.glob("*.cu") if "__global__" in path.read_text()}
    assert kernels == set(LIMITS)


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda arch: f"sm_{arch}")
@pytest.mark.parametrize("source", LIMITS)
def test_no_spills_and_few_registers(compiled: Compile, source: str, arch: str) -> None:
    _, log = compiled(source, arch)
    spills = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    found = re.findall(rf"(?s)entry function '(\S+)'.*?{spills}.*?Used (\d+) registers", log)
    expected = LIMITS[source]
    assert len(found) == sum(count for count, _ in expected.values())
    for name, (count, most) in expected.items():
        kernels = [(*map(int, numbers),) for symbol, *numbers in found if re.search(rf"\d{name}(?:I|E)", symbol)]
        assert len(kernels) == count, name
        assert {number for *spills, _ in kernels for number in spills} == {0}, name
        assert max(registers for *_, registers in kernels) <= most, name


def _code(compiled: Compile, source: str) -> dict[str, str]:
    """The SASS of every kernel in a file."""
    tool = _cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump in the CUDA toolkit or the triton package")
    cubin, _ = compiled(source, "90")
    sass = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    return {part.split("\n", 1)[0]: part for part in sass.split("Function : ")[1:]}


@pytest.mark.parametrize(
    ("source", "kernels"),
    [
        ("sparse_decode", ["kernelIffLi4", "kernelI13__nv_bfloat16fLi8", "kernelI6__halffLi8", "kernelIddLi2"]),
        ("residual", ["kernelIfLi4", "kernelI13__nv_bfloat16Li8", "kernelI6__halfLi8"]),
        ("gradient", ["feature_squaresIffLi4", "sum_chunksIfLi4"]),
        ("adam", ["adam_featuresIffLi4"]),
    ],
)
def test_four_gathers_leave_before_the_first_is_used(compiled: Compile, source: str, kernels: list[str]) -> None:
    functions = _code(compiled, source)
    for kernel in kernels:
        (code,) = (text for name, text in functions.items() if kernel in name)
        steps = re.findall(r"LDG\.E\.128|[FD]FMA", code)
        assert re.search(r"(?:LDG\.E\.128 ){4}[FD]FMA", " ".join(steps)), kernel
        assert not re.search(r"\b(?:LDL|STL)\b", code), kernel


def test_rows_are_searched_with_four_wide_loads_in_flight(compiled: Compile) -> None:
    for name, code in _code(compiled, "select").items():
        if "Lb1" in name:  # aligned
            steps = re.findall(r"LDG\.E\.128|FMNMX", code)
            assert re.search(r"(?:LDG\.E\.128 ){4}FMNMX", " ".join(steps)), name
