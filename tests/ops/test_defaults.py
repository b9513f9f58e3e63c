"""torch's defaults of device and dtype are for tensors that users make: ops follow their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from pullback import ops
from pullback.ops.screen import Screen
from pullback.training import TrainStep
from tests.ops.cases import PRODUCTS, multiply_in, pattern
from tests.ops.gradient_cases import copied, dictionary, gradient

G = torch.Generator().manual_seed(0)
X, W, B = (torch.randn(*s, generator=G) for s in [(70, 24), (500, 24), (500,)])
TARGETS = torch.randn(3, 70, 24, generator=G)
ACTS = pattern(70, 500, 20, torch.float32, seed=0)
GRAD = gradient(4, 1, 40, 20, 30, 3, 0, torch.float32)
GROUPS = dictionary(GRAD, 1), dictionary(GRAD, 2), dictionary(GRAD, 3, positive=True)


def adam() -> Tensor:
    groups = [copied(group) for group in GROUPS]
    screen = Screen(groups[0].W_enc)
    ops.adam_(GRAD, *groups, 1.0, 1e-2, 1, screen=screen)
    assert screen.norms.dtype == torch.float32
    return torch.cat([groups[0].W_enc.flatten(), ops.gradient_norm(GRAD, groups[0].W_dec)[None]])


def steps() -> Tensor:
    step = TrainStep(24, 24, 100, k=3, dead_feature_window=100, skip_connection=True, dtype=torch.float32)
    for _ in range(3):
        step(X, X.roll(1, dims=1))
    return step.transcoder.W_dec.detach()


OPS: dict[str, Callable[[], Tensor]] = {
    "topk_select": lambda: ops.topk_select(W, 5)[0],
    "topk_encode": lambda: ops.topk_encode(X, W, B, 5)[0],
    "topk_encode with a screen": lambda: ops.topk_encode(X, W, B, 5, screen=Screen(W))[0],
    "topk_encode in float64": lambda: ops.topk_encode(X.double(), W, B, 5)[0],
    "threshold_encode": lambda: ops.threshold_encode(X, W, B, 1.0).values,
    "batch_topk_encode": lambda: ops.batch_topk_encode(X, W, B, 5).values,
    "unsettled rows": lambda: ops.topk_encode(X, W[:1].expand(3000, -1), B[:1].expand(3000), 5)[0],
    "decode_topk": lambda: ops.decode_topk(*ops.topk_encode(X, W, B, 5), W),
    "decode_csr": lambda: ops.decode_csr(ACTS, W),
    "sampled_dot": lambda: ops.sampled_dot(X, W, ACTS.indptr, ACTS.indices),
    "segment_outer": lambda: ops.segment_outer(ACTS.indptr, ACTS.indices, ACTS.values, X, 500),
    "contract": lambda: ops.contract(TARGETS, ACTS, W),
    "contract_topk": lambda: ops.contract_topk(TARGETS, *ops.topk_encode(X, W, B, 5), W),
    "top_pullbacks": lambda: ops.top_pullbacks(X, W, 7)[0],
    "top_pullbacks of the active": lambda: ops.top_pullbacks(X, W, 7, ACTS)[0],
    "Coactivation": lambda: ops.Coactivation(500).add(ACTS).top(9)[0],
    "Coactivation of rows": lambda: ops.Coactivation(500, rows=[3, 7]).add(ACTS).top(9)[0],
    "to_dense": lambda: ACTS.to_dense(),
    "decode_residual": lambda: ops.decode_residual(*ops.topk_encode(X, W, B, 5), W, None, X)[1],
    "adam_": adam,
    "TrainStep": steps,
}


@contextmanager
def other_defaults() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", OPS)
def test_ops_follow_their_arguments(name: str, product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_in(product, monkeypatch)
    expected = OPS[name]()
    with other_defaults():
        got = OPS[name]()
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)
