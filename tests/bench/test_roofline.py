"""The floor's arithmetic against sums done by hand, for a GPU of 790 TFLOP/s and 4.3 TB/s."""

from __future__ import annotations

import pytest

from bench import data, roofline
from bench.roofline import Ceilings, cost, floor_ms

H200 = Ceilings(gemm_fp32=50e3, gemm_bf16=790e3, stream=4300.0)
MILLION = {"N": 8192, "d": 2304, "F": 2**20, "k": 64}


def only(op: str, shape: dict[str, int], size: int = 2) -> roofline.Phase:
    (phase,) = cost(op, shape, size)
    return phase


@pytest.mark.parametrize(
    ("shape", "tera", "ms"), [(data.GPT2, 0.309, 0.391), (data.GEMMA, 4.95, 6.26), (MILLION, 39.6, 50.1)]
)
def test_the_encoder_gemm(shape: dict[str, int], tera: float, ms: float) -> None:
    assert only("topk_encode", shape).flops == pytest.approx(tera * 1e12, rel=3e-3)
    assert floor_ms("topk_encode", shape, "bfloat16", H200) == pytest.approx(ms, rel=3e-3)


def test_a_screened_float32_encoder_is_held_against_the_bfloat16_gemm() -> None:
    assert floor_ms("topk_encode", data.GPT2, "float32", H200) == pytest.approx(0.391, rel=3e-3)


@pytest.mark.parametrize(("shape", "ms"), [(data.GPT2, 0.012), (data.GEMMA, 0.150), (MILLION, 0.57)])
def test_decode_reads_each_row_once_that_can_be_used_at_all(shape: dict[str, int], ms: float) -> None:
    assert floor_ms("decode", shape, "bfloat16", H200) == pytest.approx(ms, rel=0.02)


@pytest.mark.parametrize(("shape", "size"), [(data.GPT2, 403e6), (data.GEMMA, 2.15e9), (MILLION, 17.2e9)])
def test_select_reads_the_whole_matrix(shape: dict[str, int], size: float) -> None:
    entries = shape["N"] * shape["k"] * 6
    assert only("select", shape).bytes - entries == pytest.approx(size, rel=3e-3)


@pytest.mark.parametrize(("shape", "ms"), [(data.GPT2, 0.228), (data.GEMMA, 3.65), (MILLION, 29.2)])
def test_the_update_moves_26_bytes_a_parameter(shape: dict[str, int], ms: float) -> None:
    update = cost("update", shape)[1]
    assert update.bytes / 4.3e9 == pytest.approx(ms, rel=3e-3)


def test_a_step_is_at_least_its_gemm_and_its_update() -> None:
    whole = floor_ms("step", data.GPT2, "float32", H200)
    assert 0.391 + 0.228 < whole < 0.95  # the estimate that counts gathers from memory as well is 0.95 to 1.2


def test_attribution() -> None:
    small = only("contract", {"B": 256, "P": 64 * 12, "d": 768, "F": 24576, "k": 32})
    assert small.flops == pytest.approx(0.0097e12, rel=5e-3)
    assert small.bytes == pytest.approx(38e6 + 302e6 + 25e6, rel=5e-3)
    gemma = {"B": 256, "P": 128 * 26, "d": 2304, "F": 26 * 16384, "k": 64}
    assert only("contract", gemma).bytes == pytest.approx(981e6 + 3926e6 + 218e6, rel=1e-3)
    assert floor_ms("contract", gemma, "bfloat16", H200) == pytest.approx(1.19, rel=5e-3)


def test_backward_by_hand() -> None:
    phase = only("backward", {"N": 3, "d": 5, "F": 7, "k": 2}, 4)
    assert phase.flops == 6 * 3 * 2 * 5
    reads = 4 * (3 * 5 + 3 * 5 + 6 * 5) + 8 * 3 * 2
    assert phase.bytes == reads + 4 * (7 * 5 + 7 + 7 * 5)


def test_a_phase_is_bound_by_the_slower_of_arithmetic_and_memory() -> None:
    slow_memory = Ceilings(gemm_fp32=1e9, gemm_bf16=1e9, stream=1.0)
    assert floor_ms("select", {"N": 10, "F": 1000, "k": 1}, "float32", slow_memory) == pytest.approx(
        (4 * 10 * 1000 + 8 * 10) / 1e9 * 1e3
    )


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="decode needs the dimension 'd'"):
        cost("decode", {"N": 1, "F": 2, "k": 1})
    with pytest.raises(ValueError, match="no op 'nonsense'"):
        cost("nonsense", data.TINY)
    with pytest.raises(ValueError, match="no GEMM ceiling for float64"):
        floor_ms("decode", data.TINY, "float64", H200)


def test_best_of_takes_each_ceiling_from_where_it_was_highest() -> None:
    assert roofline.best_of(Ceilings(1, 5, 2), Ceilings(3, 4, 1)) == Ceilings(3, 5, 2)
