"""Streaming the encoder: the features of all at once, to the bit, for every rule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pullback.transcoders import BatchTopK, JumpReLU, ReLU, TopK
from pullback.transcoders.lazy import encode_in_blocks
from tests.transcoders.lazy.conftest import assert_same

pytestmark = pytest.mark.usefixtures("small_blocks")

RULES = {
    "topk": lambda k, F: TopK(k),
    "topk-signed": lambda k, F: TopK(k, relu=False),
    "batch_topk": lambda k, F: BatchTopK(k),
    "batch_topk-threshold": lambda k, F: BatchTopK(k, 0.5),
    "jumprelu-number": lambda k, F: JumpReLU(0.5),
    "jumprelu-vector": lambda k, F: JumpReLU(torch.linspace(-2, 2, F)),
    "relu": lambda k, F: ReLU(),
}


def _draw(seed, n, F, whole):
    """Inputs, encoder and bias: whole numbers make ties within and across blocks, zeros among them."""
    g = torch.Generator().manual_seed(seed)
    if whole:
        return tuple(torch.randint(-1, 2, shape, generator=g).float() for shape in ((n, 3), (F, 3), (F,)))
    return tuple(torch.randn(shape, generator=g) for shape in ((n, 5), (F, 5), (F,)))


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**16), n=st.integers(0, 5), F=st.integers(1, 61), k=st.integers(1, 12), whole=st.booleans())
def test_streamed_features_are_those_of_all_at_once(mapped, rule, seed, n, F, k, whole):
    x, W, b = _draw(seed, n, F, whole)
    activation = RULES[rule](min(k, F), F)
    assert_same(encode_in_blocks(activation, x, mapped(W), b), activation.encode(x, W, b))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("turned", [False, True], ids=["feature-major", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_from_other_dtypes_and_either_way_round(mapped, rule, turned, dtype):
    x, W, b = _draw(3, 6, 45, whole=False)
    W = W.to(dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    activation = RULES[rule](7, 45)
    ours = encode_in_blocks(activation, x.to(compute), mapped(W, turned=turned, dtype=compute), b.to(compute))
    theirs = activation.encode(x.to(compute), W.to(compute), b.to(compute))
    if dtype == torch.float64:  # a GEMM may sum a block in another order
        assert torch.equal(ours.indices, theirs.indices)
        torch.testing.assert_close(ours.values, theirs.values, rtol=1e-13, atol=1e-13)
    else:
        assert_same(ours, theirs)


@pytest.mark.parametrize("rule", ["topk", "topk-signed", "batch_topk", "relu", "jumprelu-vector"])
def test_nan_surfaces_as_it_does_from_all_at_once(mapped, rule):
    x, W, b = _draw(5, 4, 30, whole=False)
    W[17, 2] = torch.nan
    activation = RULES[rule](3, 30)
    ours = encode_in_blocks(activation, x, mapped(W), b)
    assert_same(ours, activation.encode(x, W, b))
    assert ours.values.isnan().any()
