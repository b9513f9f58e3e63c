"""The same bits from any number of threads, and from one run to the next."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pullback import ops
from pullback.ops import frozen
from tests.ops.cases import pattern

ACTS = pattern(300, 700, 40, torch.float32, seed=1)
G = torch.Generator().manual_seed(0)
H, X, W = (torch.randn(*s, generator=G) for s in [(300, 3000), (300, 130), (700, 130)])
TARGETS = torch.randn(9, 300, 130, generator=G)
TAKEN, MIXING, LEAF = (torch.randn(*s, generator=G) for s in [(3, 40, 4, 32), (3, 4, 30, 30), (3, 30, 128)])
AT = frozen.Placed(torch.arange(120).view(3, 40), torch.ones(3, 40), torch.arange(120).view(3, 40) % 30)


def _into(contract: Callable[..., None], *arguments: object, columns: tuple[int, ...]) -> torch.Tensor:
    out = torch.zeros(128, *columns)
    contract(*arguments, out)
    return out


OPS: dict[str, Callable[[], torch.Tensor]] = {
    "topk_select": lambda: ops.topk_select(H, 20)[0],
    "topk_select ids": lambda: ops.topk_select(H.round(), 20)[1],
    "topk_encode": lambda: ops.topk_encode(X, W, W[:, 0], 20)[0],
    "decode_csr": lambda: ops.decode_csr(ACTS, W),
    "sampled_dot": lambda: ops.sampled_dot(X, W, ACTS.indptr, ACTS.indices),
    "segment_outer": lambda: ops.segment_outer(ACTS.indptr, ACTS.indices, ACTS.values, X, 700),
    "contract": lambda: ops.contract(TARGETS, ACTS, W),
    "contract bfloat16": lambda: ops.contract(TARGETS.bfloat16(), ACTS, W.bfloat16()),
    "contract two layers": lambda: ops.contract(TARGETS.expand(2, -1, -1, -1), ACTS, W[:, None].expand(-1, 2, -1)),
    "contract into": lambda: ops.contract(TARGETS, ACTS, W, out=torch.ones(9, ACTS.nnz)),
    "spread_heads": lambda: frozen.spread_heads(TAKEN.flatten(0, 1), AT, MIXING, MIXING[:, 0, 0], 30),
    "mix_back": lambda: frozen.mix_back(TAKEN.view(3, 10, 4, 4, 32), MIXING, MIXING[:, 0, 0], 2),
    "contract_leaves": lambda: _into(
        frozen.contract_leaves,
        LEAF.view(90, 128, 1).expand(-1, -1, 16).contiguous(),
        [LEAF[..., :16]],
        [0],
        columns=(90,),
    ),
    "contract_written": lambda: _into(
        frozen.contract_written,
        LEAF[..., None].expand(-1, -1, -1, 16).contiguous(),
        LEAF.view(3, 30, 8, 16),
        0,
        columns=(3, 8),
    ),
    "contract_topk": lambda: ops.contract_topk(TARGETS, *ops.topk_select(H[:, :700], 20), W),
}


@pytest.mark.parametrize("name", OPS)
def test_bits_do_not_depend_on_threads(isa: str, name: str) -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(OPS[name]())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], r) for r in results[1:])


def test_python_threads_do_not_share_scratch() -> None:
    """The interpreter lock is released inside: encoders of different shapes really run side by side."""
    inputs = [(torch.randn(200, 16), torch.randn(F, 16), torch.zeros(F)) for F in (300, 900, 500, 1200)] * 4
    expected = [ops.topk_encode(*args, 7) for args in inputs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda args: ops.topk_encode(*args, 7), inputs))
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
