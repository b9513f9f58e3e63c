"""The compiled module checks every shape itself: whoever calls it, no memory is touched before it fits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pullback import _C
from pullback.ops.cpu.borrow import view

H, VALUES, INDICES = torch.randn(3, 8), torch.empty(3, 2), torch.empty(3, 2, dtype=torch.int32)
INDPTR, IDS, V = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 4], dtype=torch.int32), torch.ones(2)
W, B, OUT, G = torch.randn(5, 8), torch.zeros(8), torch.empty(3, 8), torch.randn(2, 3, 8)


def topk(h=H, values=VALUES, indices=INDICES):  # noqa: ANN001, ANN201
    return lambda: _C.topk_select(view(h), view(values), view(indices), True)


def decode(indptr=INDPTR, ids=IDS, values=V, weights=W, bias=B, out=OUT):  # noqa: ANN001, ANN201
    return lambda: _C.decode_csr(*(view(t) for t in (indptr, ids, values, weights, bias, out)))


def contract(targets=G, indptr=INDPTR, ids=IDS, values=V, weights=W, out=torch.empty(2, 2)):  # noqa: ANN001, ANN201, B008
    tensors = targets[None], indptr, ids, values, weights[:, None], out
    return lambda: _C.contract(*(view(t) for t in tensors), False)


COUNTS, SUMS = torch.empty(5, dtype=torch.int64), torch.empty(2, dtype=torch.float64)
PAIRS = torch.tensor([0, 1, 1, 1, 1, 2]), torch.tensor([0, 4], dtype=torch.int32)  # of IDS with itself


def counts(indptr=INDPTR, ids=IDS, other=IDS, out=COUNTS, F_b=5):  # noqa: ANN001, ANN201
    return lambda: _C.coactivation_counts(*map(view, (indptr, ids, INDPTR, other, out)), F_b)


def pair_sums(values=V, room=PAIRS, products=SUMS, gated=SUMS):  # noqa: ANN001, ANN201
    pattern = INDPTR, IDS
    return lambda: _C.coactivation_sums(*map(view, (*pattern, values, *pattern, V, *room, products, gated)), 5)


def union(left=PAIRS, values=SUMS, room=PAIRS):  # noqa: ANN001, ANN201
    return lambda: _C.union_sums(*map(view, (*left, values, SUMS, *PAIRS, SUMS, SUMS, *room, SUMS, SUMS)), 5)


CASES: list[tuple[Callable[[], None], str]] = [
    (topk(h=H[0]), r"h must be \[-1, -1\], got \[8\]"),
    (topk(values=VALUES[:2]), r"values must be \[3, -1\], got \[2, 2\]"),
    (topk(indices=torch.empty(3, 3, dtype=torch.int32)), r"indices must be \[3, 2\], got \[3, 3\]"),
    (topk(indices=torch.empty(3, 2, dtype=torch.int64)), "indices must have 4 bytes an element, got 8"),
    (topk(values=torch.empty(2, 3).T), "values must be contiguous, got strides"),
    (topk(h=torch.randn(8, 3).T), "the last dimension of h must be contiguous"),
    (topk(h=H.half(), values=VALUES.half()), "must be float32 or float64, got 2 bytes"),
    (topk(values=torch.empty(3, 9), indices=torch.empty(3, 9, dtype=torch.int32)), "k must be in 1..F=8, got 9"),
    (topk(values=torch.empty(3, 0), indices=torch.empty(3, 0, dtype=torch.int32)), "k must be in 1..F=8, got 0"),
    (decode(indptr=INDPTR[:3]), r"indptr must be \[4\], got \[3\]"),
    (decode(indptr=INDPTR + 1), "indptr must grow from 0 to nnz=2"),
    (decode(ids=IDS + 1), "feature id 5 at entry 1 is not in 0..F-1=4"),
    (decode(ids=IDS - 1), "feature id -1 at entry 0"),
    (decode(values=V.double()), "values must have 4 bytes an element, got 8"),
    (decode(bias=B[:7]), r"bias must be \[8\], got \[7\]"),
    (decode(out=OUT[:, :7]), r"out must be \[-1, 8\], got \[3, 7\]"),
    (contract(targets=G[:, :2]), r"indptr must be \[3\], got \[4\]"),
    (contract(weights=W[:, :7]), r"W must be \[-1, 1, 8\], got \[5, 1, 7\]"),
    (contract(values=V.double()), r"all float64; got \[4, 4, 8\] bytes an element of G, W and values"),
    (contract(weights=W.double()), r"all float64; got \[4, 8, 4\] bytes an element of G, W and values"),
    (contract(out=torch.empty(2, 2, dtype=torch.float64)), "out must have 4 bytes an element, got 8"),
    (contract(out=torch.empty(2, 4)[:, ::2]), "the last dimension of out must be contiguous"),
    (contract(targets=torch.randn(2, 3, 16)[..., ::2]), "the last dimension of G must be contiguous"),
    (contract(out=torch.empty(2, 3)), r"out must be \[2, 2\], got \[2, 3\]"),
    (counts(indptr=INDPTR[:3]), r"indptr must be \[3\], got \[4\]"),
    (counts(ids=IDS + 1), "feature id 5 at entry 1 is not in 0..F-1=4"),
    (counts(other=IDS - 1), "feature id -1 at entry 0"),
    (counts(F_b=4), "feature id 4 at entry 1 is not in 0..F-1=3"),
    (counts(F_b=-1), "ids are int32, got F=-1"),
    (counts(out=COUNTS.int()), "counts must have 8 bytes an element, got 4"),
    (pair_sums(values=V[:1]), r"A values must be \[2\], got \[1\]"),
    (pair_sums(values=V.double()), "B values must have 8 bytes an element, got 4"),
    (pair_sums(products=SUMS[:1]), r"products must be \[2\], got \[1\]"),
    (pair_sums(gated=SUMS.float()), "gated must have 8 bytes an element, got 4"),
    (pair_sums(room=(PAIRS[0] + 1, PAIRS[1])), "of the result must grow from 0 to its number of pairs"),
    (pair_sums(room=(torch.tensor([0, 2, 2, 2, 2, 2]), PAIRS[1])), "does not count the pairs of feature 0"),
    (union(left=(torch.tensor([0, 2, 2, 2, 2, 2]), PAIRS[1].flip(0))), "ids must ascend within a row"),
    (union(values=SUMS[:1]), r"X products must be \[2\], got \[1\]"),
    (union(room=(torch.tensor([0, 2, 2, 2, 2, 2]), PAIRS[1])), "does not count the pairs of feature 0"),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_refused_with_a_sentence(case: int) -> None:
    call, sentence = CASES[case]
    with pytest.raises(ValueError, match=sentence):
        call()


def test_the_defaults_of_these_cases_pass() -> None:
    for call in (topk(), decode(), contract(), counts(), pair_sums(), union()):
        call()


def test_memory_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="h has no memory"):
        _C.topk_select((0, 4, (3, 8), (8, 1)), view(VALUES), view(INDICES), True)
    with pytest.raises(TypeError):
        _C.topk_select((0, 4), view(VALUES), view(INDICES), True)  # type: ignore[arg-type]
