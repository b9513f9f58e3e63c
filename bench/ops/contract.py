"""contract: edges of a batch of targets, edge[b, e] = value_e <G[b, position of e], W_dec[feature of e]>."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench import data, pullbacks
from bench.registry import Absent, Case, Op, Provider, Run, Verdict
from pullback import ops


@dataclass(frozen=True)
class Problem:
    """G (B, P, d), acts: k features at each of P positions, W_dec (F, d)."""

    G: Tensor
    acts: ops.SparseActivations
    W_dec: Tensor

    @property
    def ids(self) -> Tensor:
        """Int64[Tensor, "P k"]"""
        return self.acts.indices.long().view(self.G.shape[1], -1)


def make(case: Case, device: torch.device, g: torch.Generator) -> Problem:
    B, P, d, F, k = (case.shape[name] for name in ("B", "P", "d", "F", "k"))
    ids = data.distinct_ids(P, k, F, device, g).int().flatten()
    values = data.normal(case, device, g, P * k).abs() + 0.1
    indptr = torch.arange(P + 1, device=device) * k
    acts = ops.SparseActivations(indptr, ids, values, F)
    return Problem(data.normal(case, device, g, B, P, d), acts, data.normal(case, device, g, F, d))


def reference(p: Problem) -> data.Sampled:
    entries = data.sample(p.acts.nnz, p.G.device)
    vectors = p.W_dec[p.acts.indices[entries].long()].double() * p.acts.values[entries, None].double()
    gradients = p.G[:, p.acts.rows()[entries]].double()
    expected = (gradients * vectors).sum(2)
    magnitude = (gradients * vectors).abs().sum(2)
    allowed = data.rounding(p.G.shape[2] + 1, magnitude, expected, p.G.dtype, terms_in_dtype=True)
    return data.Sampled(entries, expected, allowed)


def check(p: Problem, expected: data.Sampled, output: Tensor) -> Verdict:
    if output.shape != (len(p.G), p.acts.nnz):
        raise ValueError(f"output is {list(output.shape)}, expected {[len(p.G), p.acts.nnz]}")
    return Verdict(expected.error(output[:, expected.places]))


def _ours(p: Problem) -> Run:
    return lambda: ops.contract(p.G, p.acts, p.W_dec)


def _einsum(p: Problem) -> Run:
    """The form circuit-tracer uses, written anew: decoder rows are gathered and scaled once, before; then every batch
    gathers a gradient for every entry, B x E x d of them."""
    vectors = p.W_dec[p.acts.indices.long()] * p.acts.values[:, None]
    rows = p.acts.rows()
    return lambda: torch.einsum("bed,ed->be", p.G[:, rows], vectors)


def _bmm(p: Problem) -> Run:
    ids = p.ids

    def run() -> Tensor:
        dots = torch.bmm(p.W_dec[ids], p.G.permute(1, 2, 0))  # (P, k, B)
        return (dots.flatten(0, 1) * p.acts.values[:, None]).T

    return run


def _grouped(p: Problem) -> Run:
    grouped_mm = getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if grouped_mm is None:
        raise Absent(f"torch {torch.__version__} has no grouped_mm")
    if p.G.dtype != torch.bfloat16 and p.G.is_cuda:
        raise Absent("grouped_mm takes bfloat16 on a GPU")
    ids, ends = p.ids.flatten(), p.acts.indptr[1:].int()

    def run() -> Tensor:
        dots = grouped_mm(p.W_dec[ids], p.G.permute(1, 2, 0), offs=ends)  # (E, B)
        return (dots * p.acts.values[:, None]).T

    return run


def _compiled(p: Problem) -> Run:
    return torch.compile(_bmm(p))


_GPT2 = {"B": 256, "P": 64 * 12, "d": 768, "F": 24576, "k": 32}
_GEMMA = {"B": 256, "P": 128 * 26, "d": 2304, "F": 131072, "k": 64}

CONTRACT = Op(
    name="contract",
    cases=(
        Case({"B": 5, "P": 3, "d": 16, "F": 64, "k": 4}, ("tiny",)),
        Case({"B": 16, "P": 64, "d": 768, "F": 24576, "k": 32}, ("quick", "full")),
        Case({"B": 64, "P": 64, "d": 768, "F": 24576, "k": 32}, ("full",), label="GPT-2 small, a layer"),
        Case({"B": 64, "P": 64, "d": 768, "F": 24576, "k": 32}, ("full",), "bfloat16", label="GPT-2 small, a layer"),
        Case({"B": 32, "P": 64, "d": 2304, "F": 65536, "k": 64}, ("full",), label="Gemma-2-2b, a layer"),
        Case(_GPT2, ("gpu",), "bfloat16", label="GPT-2 small"),
        Case(_GPT2, ("gpu",), label="GPT-2 small"),
        Case(_GEMMA, ("gpu",), "bfloat16", label="Gemma-2-2b"),
    ),
    inputs=make,
    reference=reference,
    check=check,
    providers=(
        *pullbacks.forced(_ours, "contract"),
        Provider("circuit-tracer einsum", _einsum),
        Provider("torch gather, bmm", _bmm),
        Provider("torch grouped_mm", _grouped),
        Provider("torch-compile", _compiled, optional=True),
    ),
)
