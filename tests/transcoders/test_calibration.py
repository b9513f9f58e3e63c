"""Thresholds in the place of a top-k: each feature stays as often active as it was."""

from __future__ import annotations

import pytest
import torch

from pullback.transcoders import BatchTopK, JumpReLU, ReLU, TopK, calibrate_thresholds, calibration, to_jumprelu


def firings(tc, x):
    return torch.bincount(tc.encode(x).indices.long(), minlength=tc.d_sae)


@pytest.fixture
def rows():
    return torch.randn(500, 13, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("block", [1 << 27, 40_000], ids=["at once", "in blocks"])
@pytest.mark.parametrize("rule", [TopK(5), TopK(1), TopK(37), BatchTopK(4)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_feature_is_active_as_often_as_before(make, rows, rule, dtype, block, monkeypatch):
    monkeypatch.setattr(calibration, "BLOCK_BYTES", block)
    tc = make(rule, dtype=dtype)
    tc.b_enc[3] = -1e3  # never active
    calibrated = to_jumprelu(tc, rows)
    assert (calibrated.theta >= 0).all(), "SAELens would cut negative features off whatever the threshold"
    before, after = firings(tc, rows), firings(calibrated, rows)
    if dtype == torch.bfloat16:  # the thresholds are rounded to it as well
        assert (before - after).abs().float().mean() < 3
    else:
        assert torch.equal(before, after)
    assert after[3] == 0


def test_a_threshold_lies_between_what_is_kept_and_what_is_cut(make, rows):
    tc = make(TopK(5))
    h, theta, counts = rows @ tc.W_enc.T + tc.b_enc, calibrate_thresholds(tc, rows), firings(tc, rows)
    for feature in range(37):
        ranked = h[:, feature].clamp(min=0).sort(descending=True).values
        n = int(counts[feature])
        if n:
            assert ranked[n - 1] > theta[feature] >= ranked[n]
            torch.testing.assert_close(theta[feature], (ranked[n - 1] + ranked[n]) / 2)


def test_what_has_thresholds_keeps_them(make, x, rows):
    for rule in (ReLU(), JumpReLU(0.3), BatchTopK(4, 0.7)):
        tc = make(rule, skip=True)
        assert torch.equal(to_jumprelu(tc)(x), tc(x))
        assert torch.equal(to_jumprelu(tc, rows)(x), tc(x))


def test_hooks_and_reading_go_along(make, rows, reading):
    tc = to_jumprelu(make(TopK(5), skip=True, reading=reading, hook_in="ln2.hook_out"), rows)
    assert (tc.hook_in, tc.reading, tc.W_skip is not None) == ("ln2.hook_out", reading, True)


def test_a_feature_that_never_fires_stays_off_for_everything_seen(make, rows):
    tc = make(TopK(1))
    h = rows @ tc.W_enc.T + tc.b_enc
    silent = firings(tc, rows) == 0
    theta = calibrate_thresholds(tc, rows)
    assert (theta[silent] >= h[:, silent].amax(0)).all()


@pytest.mark.parametrize("x", [torch.zeros(0, 13), torch.full((3, 13), torch.nan)], ids=["none", "nan"])
def test_inputs_must_be_there_and_finite(make, x):
    with pytest.raises(ValueError, match="at least one row of finite inputs"):
        calibrate_thresholds(make(TopK(5)), x)


def test_inputs_must_fit_and_be_given(make):
    with pytest.raises(ValueError, match="x must be"):
        calibrate_thresholds(make(TopK(5)), torch.zeros(3, 12))
    with pytest.raises(ValueError, match=r"TopK\(k=5.*only by calibration on inputs of this layer"):
        to_jumprelu(make(TopK(5)))
