"""The CUDA decode compiles for every architecture we ship for: no spills, wide loads, several of them in flight."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "kernels" / "cuda" / "sparse_decode.cu"
ARCHITECTURES = ["80", "90", "100", "120"]


def _nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def _cuobjdump() -> str | None:
    triton = importlib.util.find_spec("triton")
    bundled = Path(triton.origin or "").parent / "backends" / "nvidia" / "bin" if triton else Path()
    return shutil.which("cuobjdump", path=str(bundled)) or shutil.which("cuobjdump")


pytestmark = pytest.mark.skipif(_nvcc() is None, reason="no nvcc on this machine")


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda arch: f"sm_{arch}")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The machine code of sparse_decode.cu and what ptxas said about it."""
    cubin = tmp_path_factory.mktemp("cubin") / "sparse_decode.cubin"
    nvcc = _nvcc()
    assert nvcc is not None
    command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{request.param}", "-cubin", "-Xptxas", "-v", "-o", str(cubin)]
    run = subprocess.run([*command, str(SOURCE)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return cubin, run.stdout + run.stderr


def test_no_spills(built: tuple[Path, str]) -> None:
    _, log = built
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(spills) == 8  # four weight types, aligned and not
    assert {int(number) for spill in spills for number in spill} == {0}
    # 64 registers let four blocks of 256 threads stay resident, which is what the kernel asks for.
    assert max(int(number) for number in re.findall(r"Used (\d+) registers", log)) <= 64


def test_four_gathers_leave_before_the_first_is_used(built: tuple[Path, str]) -> None:
    tool = _cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump in the CUDA toolkit or the triton package")
    sass = subprocess.run([tool, "-sass", str(built[0])], capture_output=True, text=True, check=True).stdout
    functions = {part.split("\n", 1)[0]: part for part in sass.split("Function : ")[1:]}
    for weights in ["IffLi4", "I13__nv_bfloat16fLi8", "I6__halffLi8", "IddLi2"]:
        (code,) = (text for name, text in functions.items() if f"decode_csr_kernel{weights}" in name)
        steps = re.findall(r"LDG\.E\.128|[FD]FMA", code)
        assert re.search(r"(?:LDG\.E\.128 ){4}[FD]FMA", " ".join(steps)), weights
        assert "STG.E.128" in code
        assert not re.search(r"\b(?:LDL|STL)\b", code)
