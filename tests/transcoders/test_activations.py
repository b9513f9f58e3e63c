"""Each sparsity rule against its definition, and its sparse encoder against its dense form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pullback.ops import _encoder
from pullback.transcoders import BatchTopK, JumpReLU, ReLU, TopK


def weights(F=19, d=7, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(F, d, generator=g, dtype=dtype), torch.randn(F, generator=g, dtype=dtype)


RULES = [TopK(3), TopK(3, relu=False), TopK(19), BatchTopK(3), BatchTopK(3, 0.5), JumpReLU(0.4), JumpReLU(-0.4), ReLU()]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("chunk_rows", [1, 3, 1000])
@pytest.mark.parametrize("n", [0, 1, 10])
def test_encode_is_dense_of_the_preactivations_whatever_the_chunk(rule, chunk_rows, n, monkeypatch):
    W_enc, b_enc = weights()
    monkeypatch.setattr(_encoder, "CPU_ROWS", (1, chunk_rows))
    x = torch.randn(n, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    acts = rule.encode(x, W_enc, b_enc).validate()
    assert (acts.n_rows, acts.n_features, acts.dtype) == (n, 19, torch.float64)
    torch.testing.assert_close(acts.to_dense(), rule.dense(x @ W_enc.T + b_enc), rtol=1e-12, atol=1e-12)


def test_topk_with_fewer_positives_than_k_keeps_only_these():
    h = torch.tensor([[-1.0, 2.0, -3.0, 0.5], [-1.0, -2.0, -3.0, -4.0]])
    assert TopK(3).dense(h).tolist() == [[0, 2.0, 0, 0.5], [0, 0, 0, 0]]
    assert TopK(3, relu=False).dense(h).tolist() == [[-1.0, 2.0, 0, 0.5], [-1.0, -2.0, -3.0, 0]]


def test_topk_breaks_ties_to_the_lower_feature():
    assert TopK(2).dense(torch.ones(1, 4)).tolist() == [[1, 1, 0, 0]]


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 6), F=st.integers(1, 9), k=st.integers(1, 9), seed=st.integers(0, 10**6), ties=st.booleans())
def test_batch_topk_keeps_exactly_k_times_n_of_the_positives(n, F, k, seed, ties):
    h = torch.randn(n, F, generator=torch.Generator().manual_seed(seed))
    if ties:
        h = h.round()
    z = BatchTopK(min(k, F)).dense(h)
    budget, positive = min(k, F) * n, int((h > 0).sum())
    assert int((z != 0).sum()) == min(budget, positive)
    assert torch.equal(z[z != 0], h[z != 0])
    kept, dropped = h[z != 0], h[(z == 0) & (h > 0)]
    if len(dropped):
        assert kept.min() >= dropped.max()
        # Among equals the earlier (row, id) wins.
        level = dropped.max()
        at = (h.flatten() == level).nonzero().flatten()
        chosen = z.flatten()[at] != 0
        assert torch.equal(chosen, chosen.sort(descending=True, stable=True).values)


def test_batch_topk_with_k_equal_to_F_is_relu():
    h = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(BatchTopK(9).dense(h), ReLU().dense(h))


def test_jumprelu_keeps_what_exceeds_theta_strictly():
    h = torch.tensor([[-0.5, 0.4, 0.5, 0.6]])
    assert JumpReLU(0.5).dense(h).tolist() == torch.tensor([[0, 0, 0, 0.6]]).tolist()
    assert JumpReLU(torch.tensor([-1.0, 1.0, 0.0, 0.6])).dense(h).tolist() == [[-0.5, 0, 0.5, 0]]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_nan_surfaces(rule):
    W_enc, b_enc = weights()
    x = torch.zeros(2, 7, dtype=torch.float64)
    x[1, 0] = torch.nan
    values = rule.encode(x, W_enc, b_enc).values
    assert values.isnan().any()


def test_jumprelu_compares_by_value():
    assert JumpReLU(torch.ones(3)) == JumpReLU(torch.ones(3))
    assert JumpReLU(torch.ones(3)) != JumpReLU(torch.zeros(3))
    assert JumpReLU(1.0) != ReLU()


@pytest.mark.parametrize("k", [0, -1, 2.0, True])
@pytest.mark.parametrize("rule", [TopK, BatchTopK])
def test_k_must_be_a_positive_integer(rule, k):
    with pytest.raises(ValueError, match="k must be an integer of at least 1"):
        rule(k)


@pytest.mark.parametrize("theta", [float("nan"), torch.full((3,), torch.inf), torch.zeros(2, 2)])
def test_theta_must_be_finite_numbers(theta):
    with pytest.raises(ValueError, match="theta must be"):
        JumpReLU(theta)
