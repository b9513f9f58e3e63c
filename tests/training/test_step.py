"""One optimisation step: its loss, its gradients, its bookkeeping, and what it does when numbers break."""

from __future__ import annotations

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pullback.ops.reference.gradient import dense_gradient
from pullback.training import TrainingDiverged, TrainStep
from pullback.transcoders import TopK


def rows(n, d, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def repeat(step, n):
    for _ in range(n):
        step(rows(9, 4), rows(9, 4))


def captured(step):
    """A list that fills with the gradients, by weight, that the optimizer of `step` sees."""
    seen, take_step = [], step.optimizer.step

    def recorded(gradient, scale, *rest):
        parts = dense_gradient(gradient.features)._asdict() | gradient.dense()
        seen.append({name: scale.to(part.dtype) * part for name, part in parts.items()})
        take_step(gradient, scale, *rest)

    step.optimizer.step = recorded
    return seen


def dense_loss(step, x, y):
    """FVU of the current weights in plain dense autograd, with the variance of y itself."""
    tc = step.transcoder
    weights = [w.detach().clone().requires_grad_() for w in (tc.W_enc, tc.b_enc, tc.W_dec, tc.b_dec)]
    W_enc, b_enc, W_dec, b_dec = weights
    h = x @ W_enc.T + b_enc
    mask = torch.zeros_like(h).scatter(1, h.topk(step.activation.k, dim=1).indices, 1.0)
    y_hat = (h * mask).relu() @ W_dec + b_dec
    return (y - y_hat).square().sum() / (y - y.mean(0)).square().sum(), weights


def test_one_row_is_a_batch():
    step = TrainStep(4, 4, 8, k=3)
    step(rows(1, 4), rows(1, 4, seed=1))
    assert step(rows(1, 4, seed=2), rows(1, 4, seed=3)).isfinite()


@pytest.mark.parametrize("k", [1, 4, 30], ids=["k=1", "k=4", "k beyond the positives"])
def test_loss_and_gradients_are_those_of_dense_autograd(k):
    x, y = rows(50, 6, dtype=torch.float64), rows(50, 5, seed=1, dtype=torch.float64)
    step = TrainStep(6, 5, 30, k=k, lr=1e-2, dtype=torch.float64, max_grad_norm=None, auxk_alpha=0)
    step(x, y)
    loss, weights = dense_loss(step, x, y)
    loss.backward()
    gradients = captured(step)
    torch.testing.assert_close(step(x, y), loss.detach(), rtol=1e-10, atol=0)
    for name, weight in zip(("W_enc", "b_enc", "W_dec", "b_dec"), weights, strict=True):
        torch.testing.assert_close(gradients[0][name], weight.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_an_empty_slot_has_no_gradient():
    """Where fewer than k pre-activations are positive, features in the empty slots must not move."""
    step = TrainStep(4, 4, 8, k=8, lr=1e-2, auxk_alpha=0)
    step(rows(16, 4), rows(16, 4, seed=1))
    with torch.no_grad():
        step.transcoder.b_enc[3:] = -100.0
    before = step.transcoder.W_enc.detach().clone()
    for moments in (step.optimizer.exp_avg, step.optimizer.exp_avg_sq):
        for moment in moments.values():
            moment.zero_()
    step(rows(16, 4), rows(16, 4, seed=1))
    assert torch.equal(step.transcoder.W_enc[3:], before[3:])
    assert not torch.equal(step.transcoder.W_enc[:3], before[:3])


def test_auxk_reaches_the_encoder_of_dead_features_only():
    x, y = rows(64, 6), rows(64, 6, seed=1)
    gradients = []
    for alpha in (0.0, 0.5):
        step = TrainStep(6, 6, 20, k=2, lr=1e-3, auxk_alpha=alpha, dead_feature_window=1000, max_grad_norm=None)
        step.tokens_since_fired[:5] = 1000
        seen = captured(step)
        step(x, y)
        gradients += seen
        assert float(step.stats.dead) == pytest.approx(5 / 20)
        assert (float(step.stats.auxk) > 0) == (alpha > 0)
    change = {name: gradients[1][name] - gradients[0][name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    for name in ("W_enc", "b_enc", "W_dec"):
        moved = change[name].reshape(20, -1).abs().amax(1)
        assert (moved[:5] > 0).all(), name
        assert (moved[5:] == 0).all(), name
    assert torch.equal(change["b_dec"], torch.zeros(6))


def test_auxk_is_its_formula():
    x, y = rows(40, 6, dtype=torch.float64), rows(40, 6, seed=1, dtype=torch.float64)
    step = TrainStep(6, 6, 20, k=2, dtype=torch.float64, auxk_k=3, dead_feature_window=1000)
    step(x, y)
    tc = step.transcoder
    dead = torch.tensor([1, 4, 7, 8, 15])
    step.tokens_since_fired[:] = 0
    step.tokens_since_fired[dead] = 1000
    residual = y - tc(x)
    h = x @ tc.W_enc[dead].T + tc.b_enc[dead]
    explained = TopK(3).dense(h) @ tc.W_dec[dead]
    expected = (residual - explained).square().sum() / (y - y.mean(0)).square().sum()
    step(x, y)
    torch.testing.assert_close(step.stats.auxk, expected, rtol=1e-9, atol=0)


def test_dead_features_are_counted_by_tokens_since_they_fired():
    step = TrainStep(4, 4, 6, k=6, dead_feature_window=50, auxk_alpha=0)
    step(rows(20, 4), rows(20, 4))
    with torch.no_grad():
        step.transcoder.b_enc[:2] = -1e6
    for _ in range(3):
        step(rows(20, 4), rows(20, 4))
    assert step.tokens_since_fired.tolist() == [60, 60, 0, 0, 0, 0]
    assert float(step.stats.dead) == 0
    step(rows(20, 4), rows(20, 4))
    assert float(step.stats.dead) == pytest.approx(2 / 6)


def test_the_first_batch_sets_the_biases_and_the_variance_runs_over_all_tokens():
    first, second = rows(30, 4) + 5, 3 * rows(10, 4, seed=1)
    step = TrainStep(4, 4, 8, k=2, lr=1e-9, auxk_alpha=0)
    step(first, first)
    torch.testing.assert_close(step.transcoder.b_dec, first.mean(0), rtol=1e-5, atol=1e-5)
    h = step.transcoder.W_enc @ first.mean(0) + step.transcoder.b_enc
    torch.testing.assert_close(h, torch.zeros(8), rtol=0, atol=1e-5)
    loss = step(second, second)
    seen = torch.cat([first, second])
    variance = (seen - seen.mean(0)).square().sum(1).mean()
    expected = (second - step.transcoder(second)).square().sum(1).mean() / variance
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


def test_the_skip_path_alone_learns_a_linear_map():
    W = rows(5, 6, seed=9)
    step = TrainStep(6, 5, 8, k=1, lr=3e-2, skip_connection=True)
    for i in range(300):
        x = rows(128, 6, seed=i)
        loss = step(x, x @ W.T)
    assert step.transcoder.W_skip.abs().max() > 0
    assert loss < 1e-3


@pytest.mark.parametrize(("d_out", "scale"), [(6, 0.1), (5, 0.0)])
def test_initial_weights(d_out, scale):
    tc = TrainStep(6, d_out, 20, k=3, seed=4).transcoder
    torch.testing.assert_close(tc.W_enc.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(tc.W_dec.norm(dim=1), torch.full((20,), scale))
    assert torch.equal(tc.W_enc, TrainStep(6, d_out, 20, k=3, seed=4).transcoder.W_enc)
    assert not torch.equal(tc.W_enc, TrainStep(6, d_out, 20, k=3, seed=5).transcoder.W_enc)


def test_the_transcoder_can_be_used_between_steps():
    step = TrainStep(4, 4, 8, k=2)
    loss = step(rows(9, 4), rows(9, 4))
    assert not loss.requires_grad
    assert not step.transcoder(rows(9, 4)).requires_grad
    assert all(w.grad is None for w in step.transcoder.parameters())


def test_weights_put_in_place_of_the_old_ones_are_encoded_with():
    """The shadow of an encoder must not outlive it."""
    step, other = TrainStep(4, 4, 500, k=2, lr=1e-9, auxk_alpha=0), TrainStep(4, 4, 500, k=2, seed=1)
    x = rows(70, 4)
    repeat(step, 1)
    step.transcoder.W_enc.data = other.transcoder.W_enc.detach().clone()
    expected = step.transcoder.encode(x)
    step(x, x)
    fired = (step.tokens_since_fired == 0).nonzero().flatten()
    assert torch.equal(fired, expected.indices.unique().long())


def test_autocast_around_a_step_changes_nothing():
    """It would round the skip path, and the start at the mean, to bfloat16."""
    x, y = rows(9, 4), rows(9, 5, seed=1)
    steps = [TrainStep(4, 5, 8, k=2, skip_connection=True) for _ in range(2)]
    for _ in range(3):
        steps[0](x, y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            steps[1](x, y)
    for a, b in zip(*(step.transcoder.parameters() for step in steps), strict=True):
        assert torch.equal(a, b)


def test_batches_may_lie_in_memory_any_way():
    x, y = rows(9, 4), rows(9, 5, seed=1)
    steps = [TrainStep(4, 5, 8, k=2) for _ in range(2)]
    steps[0](x, y)
    steps[1](x.T.contiguous().T, torch.cat([y, y], dim=1)[:, :5])
    for a, b in zip(*(step.transcoder.parameters() for step in steps), strict=True):
        assert torch.equal(a, b)


def test_targets_that_do_not_vary_are_learned_at_once():
    step = TrainStep(4, 5, 8, k=2)
    assert float(step(rows(9, 4), torch.full((9, 5), 7.0))) == 0.0


def test_nan_in_the_data_is_named_and_leaves_the_weights():
    step = TrainStep(4, 4, 8, k=2)
    step(rows(9, 4), rows(9, 4))
    before = {name: w.clone() for name, w in step.transcoder.named_parameters()}
    bad = rows(9, 4)
    bad[2, 1] = torch.nan
    with pytest.raises(TrainingDiverged, match="1 of 9 inputs at step 1 of training are NaN or infinite") as caught:
        step(bad, rows(9, 4))
    with pytest.raises(TrainingDiverged, match="1 of 9 targets"):
        step(rows(9, 4), bad)
    assert isinstance(caught.value, FloatingPointError)
    assert caught.value.transcoder is step.transcoder
    assert all(torch.equal(w, before[name]) for name, w in step.transcoder.named_parameters())


def test_nan_in_the_first_batch_does_not_reach_the_weights():
    step = TrainStep(4, 4, 8, k=2)
    with pytest.raises(TrainingDiverged, match="9 of 9 targets"):
        step(rows(9, 4), torch.full((9, 4), torch.nan))
    assert all(w.isfinite().all() for w in step.transcoder.parameters())


def test_a_late_step_tells_in_the_next_and_can_go_on():
    """What a GPU does, not to be waited for."""
    steps = [TrainStep(4, 4, 8, k=2) for _ in range(2)]
    steps[0]._late = True
    for step in steps:
        repeat(step, 2)
    bad = rows(9, 4)
    bad[2, 1] = torch.inf
    assert not steps[0](rows(9, 4), bad).isfinite()
    with pytest.raises(TrainingDiverged, match="not finite at step 2 of training"):
        steps[0](rows(9, 4), rows(9, 4))
    steps[0].check()
    for step in steps:
        repeat(step, 2)
        assert step.n_steps == 4
    for late, prompt in zip(*(step.transcoder.parameters() for step in steps), strict=True):
        assert torch.equal(late, prompt)


@pytest.mark.parametrize("how", [{}, {"optimizer": "lazy_adam", "decoder_norm": True}, {"skip_connection": True}])
def test_a_late_step_waits_for_no_tensor(how):
    """On a GPU every `bool`, `int`, `float` or `nonzero` of a tensor stops the queue: dead features counted by
    `int(mask.sum())`, metrics by `float(loss)`. The first step may."""
    waits = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ARG002
            frames = [frame.filename for frame in traceback.extract_stack() if "/pullback/" in frame.filename]
            if func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero") and "/training/" in frames[-1]:
                waits.append(f"{func} in {frames[-1]}")
            return func(*args, **(kwargs or {}))

    step = TrainStep(6, 6, 40, k=2, dead_feature_window=20, auxk_k=3, **how)
    step._late = True
    repeated = rows(12, 6)
    step(repeated, repeated)
    with Watch():
        for _ in range(4):
            step(repeated, repeated)
    assert float(step.stats.auxk) > 0
    assert waits == []


def test_the_last_step_can_be_checked():
    step = TrainStep(4, 4, 8, k=2)
    step._late = True
    step(rows(9, 4), rows(9, 4))
    step.check()
    step(rows(9, 4), torch.full((9, 4), torch.nan))
    with pytest.raises(TrainingDiverged, match="The weights are those of the step before"):
        step.check()
    assert all(w.isfinite().all() for w in step.transcoder.parameters())


def test_overflow_advises_a_lower_rate():
    step = TrainStep(4, 4, 8, k=2, lr=1e30)
    with pytest.raises(TrainingDiverged, match=r"not finite at step \d+ of training; lower lr"):
        repeat(step, 20)
    assert all(w.isfinite().all() for w in step.transcoder.parameters())


def test_a_gradient_that_overflows_under_a_finite_loss_is_caught():
    step = TrainStep(4, 5, 8, k=2)
    with pytest.raises(TrainingDiverged, match="or its gradient is not finite"):
        step(1e30 * rows(9, 4), rows(9, 5))
    assert torch.equal(step.transcoder.W_dec, torch.zeros(8, 5))


def test_gradients_are_clipped_to_the_norm():
    step = TrainStep(4, 4, 8, k=2, max_grad_norm=1e-3)
    seen = captured(step)
    step(rows(9, 4), rows(9, 4))
    norm = torch.cat([part.flatten() for part in seen[0].values()]).norm()
    torch.testing.assert_close(norm, torch.tensor(1e-3), rtol=1e-3, atol=0)


def test_the_exact_norm_is_found_only_where_the_bound_does_not_do(monkeypatch):
    """With the same weights either way."""
    weights, exact = {}, {}
    for limit in (None, 1e6, 1e-3):
        step = TrainStep(4, 4, 8, k=2, max_grad_norm=limit)

        def squared_norm(gradient, enough, limit=limit, norm=step.optimizer.squared_norm):
            found = norm(gradient, enough)
            exact[limit] = bool(found == norm(gradient))
            return found

        monkeypatch.setattr(step.optimizer, "squared_norm", squared_norm)
        step(rows(9, 4), rows(9, 4))
        weights[limit] = step.transcoder.W_enc.detach().clone()
    assert exact == {None: False, 1e6: False, 1e-3: True}
    assert torch.equal(weights[None], weights[1e6])


def test_misshapen_batches_and_16_bit_weights_are_refused():
    step = TrainStep(4, 5, 8, k=2)
    for x, y in (((3, 5), (3, 5)), ((3, 4), (2, 5)), ((0, 4), (0, 5)), ((4,), (5,))):
        with pytest.raises(ValueError, match=r"x must be \[n, d_in\]=\[n, 4\] and y \[n, d_out\]=\[n, 5\]"):
            step(torch.zeros(x), torch.zeros(y))
    with pytest.raises(ValueError, match="float32 or torch.float64"):
        TrainStep(4, 4, 8, k=2, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="k=9 exceeds the 8 features"):
        TrainStep(4, 4, 8, k=9)
