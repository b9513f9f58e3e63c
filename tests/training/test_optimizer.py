"""The whole step against plain torch autograd with torch's Adam, and what the optimizer keeps."""

from __future__ import annotations

import pytest
import torch

from pullback.ops import use_backend
from pullback.training import LazyAdam, TrainStep, loss
from pullback.transcoders import TopK


def rows(n, d, seed, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class PlainStep:
    """The loss of TrainStep in dense autograd, on copies of its weights, under torch's Adam. Its features' deaths and
    the variance of the targets are recounted from all batches so far."""

    def __init__(self, step, max_grad_norm):
        self.weights = {n: torch.nn.Parameter(w.detach().clone()) for n, w in step.transcoder.named_parameters()}
        self.adam = torch.optim.Adam(self.weights.values(), lr=step.lr, betas=(0.9, 0.99))
        self.step, self.max_grad_norm = step, max_grad_norm
        self.idle = torch.zeros(step.transcoder.d_sae, dtype=torch.long)
        self.seen = []
        self.auxk_steps = self.clipped_steps = 0

    def __call__(self, x, y):
        W, step, n = self.weights, self.step, len(x)
        if not self.seen:
            with torch.no_grad():
                W["b_dec"].copy_(y.mean(0))
                W["b_enc"].copy_(-W["W_enc"] @ x.mean(0))
        self.seen.append(y)
        targets = torch.cat(self.seen)
        scale = n * (targets - targets.mean(0)).square().sum(1).mean()
        z = TopK(step.activation.k).dense(x @ W["W_enc"].T + W["b_enc"])
        y_hat = z @ W["W_dec"] + W["b_dec"]
        if "W_skip" in W:
            y_hat = y_hat + x @ W["W_skip"].T
        total = (y - y_hat).square().sum() / scale
        dead = (self.idle >= step.dead_feature_window).nonzero().flatten()
        if len(dead):
            self.auxk_steps += 1
            k = min(step.auxk_k, len(dead))
            aux = TopK(k).dense(x @ W["W_enc"][dead].T + W["b_enc"][dead]) @ W["W_dec"][dead]
            left = (y - y_hat).detach()
            total = total + step.auxk_alpha * (left - aux).square().sum() / scale * (k / step.auxk_k)
        self.adam.zero_grad()
        total.backward()
        if self.max_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.max_grad_norm)
            self.clipped_steps += int(norm > self.max_grad_norm)
        self.adam.step()
        self.idle += n
        self.idle[(z != 0).any(0)] = 0
        return total.detach()


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("max_grad_norm", [None, 0.3], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("late", [False, True], ids=["", "late"])
def test_steps_are_those_of_autograd_and_torch_adam(skip, max_grad_norm, late, monkeypatch):
    """20 steps in float64, with features that die and are revived; late: as on a GPU, which is not waited for."""
    monkeypatch.setattr(loss, "DEAD_AT_ONCE", 4)  # chunks of dead features
    step = TrainStep(
        6, 5, 40, k=2, lr=1e-2, dtype=torch.float64, max_grad_norm=max_grad_norm, skip_connection=skip,
        auxk_alpha=0.5, auxk_k=6, dead_feature_window=25,
    )  # fmt: skip
    step._late = late
    with torch.no_grad():
        step.transcoder.W_dec.copy_(rows(40, 5, seed=99))
    plain = PlainStep(step, max_grad_norm)
    mixing = rows(6, 5, seed=98)
    for i in range(20):
        x = rows(12, 6, seed=i)
        y = 3 + x.abs() @ mixing
        torch.testing.assert_close(step(x, y), plain(x, y), rtol=1e-9, atol=1e-12)
        for name, weight in plain.weights.items():
            torch.testing.assert_close(
                getattr(step.transcoder, name).detach(), weight.detach(), rtol=1e-9, atol=1e-9, msg=f"{name} at {i}"
            )
        assert torch.equal(step.tokens_since_fired, plain.idle)
    assert plain.auxk_steps > 10
    assert max_grad_norm is None or plain.clipped_steps > 5


def trained(n_steps, dtype=torch.float32, k=2, **how):
    step = TrainStep(6, 6, 30, k=k, lr=1e-2, dtype=dtype, **how)
    for i in range(n_steps):
        x = rows(16, 6, i, dtype)
        step(x, x.abs())
    return step


@pytest.mark.parametrize("how", [{}, {"optimizer": "lazy_adam"}, {"decoder_norm": True}], ids=str)
def test_the_reference_backend_takes_the_same_steps(how):
    steps = []
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            steps.append(trained(8, dtype=torch.float64, dead_feature_window=40, auxk_k=3, **how))
    for a, b in zip(*(step.transcoder.parameters() for step in steps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_decoder_norm_keeps_unit_rows_and_still_learns():
    for d_out in (6, 5):
        step = TrainStep(6, d_out, 30, k=2, lr=1e-2, decoder_norm=True)
        assert step.transcoder.W_dec.norm(dim=1) == pytest.approx(torch.ones(30), rel=1e-6)
        losses = [float(step(x := rows(64, 6, i, torch.float32), x.abs()[:, :d_out])) for i in range(150)]
        assert step.transcoder.W_dec.norm(dim=1) == pytest.approx(torch.ones(30), rel=1e-6)
        assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


@pytest.mark.parametrize("k", [2, 28], ids=["full", "with empty slots"])
def test_lazy_adam_moves_only_what_fired(k):
    step = trained(1, optimizer="lazy_adam", auxk_alpha=0, k=k)
    assert isinstance(step.optimizer, LazyAdam)
    step.tokens_since_fired.zero_()
    before = step.transcoder.W_enc.detach().clone()
    x = rows(3, 6, 50, torch.float32)
    step(x, x.abs())
    moved = (step.transcoder.W_enc.detach() != before).any(1)
    fired = step.tokens_since_fired == 0
    assert 0 < int(fired.sum()) < 30
    assert bool((moved[fired]).all())
    assert not bool(moved[~fired].any())


def test_the_optimizer_state_travels():
    step, other = trained(5), trained(2)
    other.transcoder.load_state_dict(step.transcoder.state_dict())
    other.optimizer.load_state_dict(step.optimizer.state_dict())
    assert other.optimizer.n_steps == 5
    other._variance, other._firing = step._variance, step._firing
    x = rows(16, 6, 9, torch.float32)
    for run in (step, other):
        run(x, x.abs())
    for a, b in zip(step.transcoder.parameters(), other.transcoder.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_state_of_another_shape_is_refused():
    other = TrainStep(6, 6, 31, k=2)
    with pytest.raises(ValueError, match="exp_avg must have the shapes .*W_enc.*31, 6.* got .*30, 6"):
        other.optimizer.load_state_dict(trained(1).optimizer.state_dict())


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer must be one of adam, lazy_adam, got 'sgd'"):
        TrainStep(4, 4, 8, k=2, optimizer="sgd")
