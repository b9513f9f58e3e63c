"""The harness that runs CUDA kernels on the CPU: it sees what a GPU would hang or be wrong on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cuda_host import build as host

pytestmark = pytest.mark.skipif(host.compiler() is None, reason="no g++ or pybind11")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("faults") / "faults"
    flags = [*host.FLAGS, "-O1", "-fsanitize=address", f"-I{host.HERE}"]
    host.run(["g++", *flags, str(host.HERE / "faults.cpp"), "-o", str(program)])
    return program


@pytest.mark.parametrize(
    ("kernel", "sentence"),
    [
        ("barrier_in_a_branch", "threads of a block never meet: thread "),
        ("two_barriers", "threads of a block never meet: thread "),
        ("lane_missing", "waits in __shfl_xor_sync at line 25 with mask ffffffff"),
        ("outside_of_the_mask", "lane outside of its own mask: thread 16 waits in __any_sync"),
        ("two_collectives", "waits in __"),
        ("beyond_shared_memory", "heap-buffer-overflow"),
        ("too_much_shared_memory", "error 1"),
    ],
)
def test_wrong_kernels_are_caught(faults: Path, kernel: str, sentence: str) -> None:
    done = subprocess.run([str(faults), kernel], capture_output=True, text=True)
    assert sentence in done.stdout + done.stderr


def test_right_kernels_are_right(faults: Path) -> None:
    def result(kernel: str) -> list[int]:
        done = subprocess.run([str(faults), kernel], capture_output=True, text=True, check=True)
        return [int(x) for x in done.stdout.split()]

    assert result("neighbours") == list(range(63, -1, -1))
    half = [*[2] * 16, 16, *range(16, 31)]
    assert result("half_warps") == half + [x + 32 for x in half]
