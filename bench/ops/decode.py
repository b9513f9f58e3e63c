"""decode: y = sum of k decoder rows a token, each times its activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench import data, pullbacks
from bench.registry import Case, Op, Provider, Run, Verdict
from pullback import ops


@dataclass(frozen=True)
class Decoder:
    """values (N, k), ids Int32 (N, k), W_dec (F, d), b_dec (d)."""

    values: Tensor
    ids: Tensor
    W_dec: Tensor
    b_dec: Tensor


def make(case: Case, device: torch.device, g: torch.Generator) -> Decoder:
    N, d, F, k = (case.shape[name] for name in "NdFk")
    values = data.normal(case, device, g, N, k).abs()
    ids = data.distinct_ids(N, k, F, device, g).int()
    return Decoder(values, ids, data.normal(case, device, g, F, d), data.normal(case, device, g, d))


def reference(case: Decoder) -> data.Sampled:
    places = data.sample(len(case.values), case.values.device)
    terms = case.values[places, :, None].double() * case.W_dec[case.ids[places].long()].double()
    expected = terms.sum(1) + case.b_dec.double()
    magnitude = terms.abs().sum(1) + case.b_dec.double().abs()
    allowed = data.rounding(terms.shape[1], magnitude, expected, case.W_dec.dtype, terms_in_dtype=True)
    return data.Sampled(places, expected, allowed)


def check(_: Decoder, expected: data.Sampled, output: Tensor) -> Verdict:
    return Verdict(expected.error(output[expected.places]))


def _ours(case: Decoder) -> Run:
    return lambda: ops.decode_topk(case.values, case.ids, case.W_dec, case.b_dec)


def _embedding_bag(case: Decoder) -> Run:
    def run() -> Tensor:
        bags = torch.nn.functional.embedding_bag(case.ids, case.W_dec, per_sample_weights=case.values, mode="sum")
        return bags + case.b_dec

    return run


def _dense(case: Decoder) -> Run:
    """Scatter into N x F and multiply: what most trainers do."""
    ids = case.ids.long()

    def run() -> Tensor:
        dense = case.values.new_zeros(len(ids), len(case.W_dec)).scatter_(1, ids, case.values)
        return torch.addmm(case.b_dec, dense, case.W_dec)

    return run


def _compiled(case: Decoder) -> Run:
    return torch.compile(_embedding_bag(case))


def _sparsify(case: Decoder) -> Run:
    from sparsify.utils import decoder_impl  # type: ignore[import-not-found]

    ids = case.ids.long()
    return lambda: decoder_impl(ids, case.values, case.W_dec.mT) + case.b_dec


DECODE = Op(
    name="decode",
    cases=(
        Case(data.TINY, ("tiny",)),
        Case(data.SMALL, ("quick", "full"), label="A"),
        Case(data.WIDE, ("quick", "full"), label="B"),
        Case({"N": 128, "d": 2304, "F": 131072, "k": 64}, ("full",), label="Gemma-2-2b"),
        *(
            Case(shape, ("gpu",), dtype, label=label)
            for shape, label in ((data.GPT2, "GPT-2 small"), (data.GEMMA, "Gemma-2-2b"))
            for dtype in ("float32", "bfloat16")
        ),
    ),
    inputs=make,
    reference=reference,
    check=check,
    providers=(
        *pullbacks.forced(_ours, "decode_csr"),
        Provider("torch embedding_bag", _embedding_bag),
        Provider("torch dense", _dense),
        Provider("torch-compile", _compiled, optional=True),
        Provider("sparsify", _sparsify, needs=("sparsify",)),
    ),
)
