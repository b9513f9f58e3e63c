"""The ops that are measured, by name."""

from __future__ import annotations

from bench.registry import Op

from . import backward, contract, decode, encode, residual, select, threshold, update

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        encode.TOPK,
        select.SELECT,
        decode.DECODE,
        residual.RESIDUAL,
        backward.BACKWARD,
        update.UPDATE,
        contract.CONTRACT,
        threshold.RELU,
        threshold.JUMPRELU,
    )
}
