"""Every Triton kernel compiles ahead of time for the architectures we ship for, without spilling. Needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

# A hundred compilations: a minute of one core, several where others use it too.
pytestmark = pytest.mark.timeout(1800)

AOT = Path(__file__).resolve().parents[2] / "tools" / "aot.py"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    # A process of its own: this one may have imported the kernels for the interpreter.
    env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    env.pop("TRITON_INTERPRET", None)
    run = subprocess.run([sys.executable, str(AOT), "--json"], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.fixture(scope="module")
def by_kernel(compiled: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in compiled:
        found.setdefault(row["kernel"], []).append(row)
    return found


KERNELS = [
    "column_moments_kernel",
    "contract_kernel",
    "decode_csr_kernel",
    "encode_gemm_descriptor_kernel",
    "encode_gemm_kernel",
    "exhaust_kernel",
    "narrow_kernel",
    "pick_kernel",
    "rescore_kernel",
    "round_rows_kernel",
    "sampled_dot_kernel",
]


def test_no_kernel_spills_on_any_architecture(by_kernel: dict[str, list[dict[str, Any]]]) -> None:
    assert sorted(by_kernel) == KERNELS
    for name, rows in by_kernel.items():
        expected = {"sm_90", "sm_100"} if "descriptor" in name else {"sm_80", "sm_90", "sm_100"}
        assert {row["arch"] for row in rows} == expected
        for row in rows:
            assert row["spill_bytes"] == row["spill_instructions"] == 0
            assert row["shared_bytes"] <= row["shared_limit"]


def test_gemms_run_on_the_matrix_units_of_their_generation(by_kernel: dict[str, list[dict[str, Any]]]) -> None:
    """HMMA, HGMMA and tcgen05, for the encoder and for the contraction, the latter in float32 through TF32 too."""
    for name in ("encode_gemm_kernel", "encode_gemm_descriptor_kernel", "contract_kernel"):
        rows = [row for row in by_kernel[name] if not row["case"].startswith("fp64")]
        assert rows
        assert all(row["matrix_instructions"] > 0 for row in rows)


def test_tiles_of_the_encoder_move_in_bulk(by_kernel: dict[str, list[dict[str, Any]]]) -> None:
    assert all(row["bulk_loads"] >= 2 for row in by_kernel["encode_gemm_descriptor_kernel"])


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_decode_does_not_spill(compiled: list[dict[str, Any]], arch: str, weights: str) -> None:
    rows = [row for row in compiled if row["arch"] == arch and row["case"].startswith(f"W {weights},")]
    assert len(rows) >= 2  # aligned and unaligned rows at least
    for row in rows:
        assert row["spill_bytes"] == 0
        assert row["spill_instructions"] == 0
        assert row["registers"] <= 128  # four blocks of four warps stay resident on a multiprocessor


def test_aligned_rows_are_read_16_bytes_at_a_time(compiled: list[dict[str, Any]]) -> None:
    aligned = [row for row in compiled if row["wants_vector_loads"]]
    assert aligned
    # Four lanes of BLOCK_K a thread: fewer wide loads would mean fewer gathers in flight.
    assert all(row["loads_16_bytes"] >= 4 for row in aligned)
