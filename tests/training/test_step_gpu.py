"""The training step on a GPU: the same numbers as on a CPU, and nothing in it waits for the device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pullback.training import Recipe, TrainingDiverged, TrainStep
from pullback.transcoders import BatchTopK, JumpReLU, ReLU

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def batch(seed: int, n: int = 200, d: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g)
    return x, (x @ torch.randn(d, d, generator=torch.Generator().manual_seed(99)) / d**0.5).relu()


def steps(**switches) -> tuple[TrainStep, TrainStep]:
    made = (TrainStep(48, 48, 600, k=8, lr=1e-3, device=device, **switches) for device in ("cpu", "cuda"))
    return tuple(made)  # type: ignore[return-value]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"decoder_norm": True},
        {"optimizer": "lazy_adam"},
        {"skip_connection": True},
        {"max_grad_norm": 1e-3},
        {"max_grad_norm": None, "dead_feature_window": 300},
        {"activation": BatchTopK(8)},
        {"activation": ReLU(), "recipe": Recipe(l1_coefficient=0.02, initial_l0=50)},
        {"activation": JumpReLU(0.3), "recipe": Recipe(jumprelu_bandwidth=0.5, pre_act_loss_coefficient=1e-3)},
        {"recipe": Recipe(matryoshka_widths=(100, 300))},
    ],
    ids=str,
)
def test_a_gpu_trains_as_a_cpu_does(switches: dict) -> None:
    cpu, gpu = steps(**switches)
    for seed in range(8):
        x, y = batch(seed)
        losses = cpu(x, y), gpu(x.cuda(), y.cuda()).cpu()
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-6)
    gpu.check()
    for (name, mine), theirs in zip(gpu.transcoder.named_parameters(), cpu.transcoder.parameters(), strict=True):
        # Entries of almost no gradient may go either way in Adam.
        off = (mine.detach().cpu() - theirs.detach()).abs()
        assert float(off.mean()) < 1e-4, name
    same = gpu.tokens_since_fired.cpu() == cpu.tokens_since_fired
    assert float(same.double().mean()) > 0.98  # a near tie may turn out otherwise


@pytest.mark.parametrize("window", [300, 10**9], ids=["dead features", "none dead"])
def test_no_step_waits_for_the_device(window: int, request: pytest.FixtureRequest) -> None:
    step = TrainStep(48, 48, 600, k=8, device="cuda", dead_feature_window=window)
    batches = [tuple(t.cuda() for t in batch(seed)) for seed in range(6)]
    for x, y in batches[:3]:  # the first looks at its batch, and kernels are compiled
        step(x, y)
    torch.cuda.synchronize()
    request.getfixturevalue("no_waiting")
    for x, y in batches[3:]:
        step(x, y)
    assert step.n_steps == 6


def test_nan_is_told_in_the_next_step_and_changes_nothing() -> None:
    _, gpu = steps()
    x, y = (t.cuda() for t in batch(0))
    gpu(x, y)
    before = gpu.transcoder.W_enc.detach().clone()
    x[3, 3] = torch.nan
    gpu(x, y)
    with pytest.raises(TrainingDiverged, match="not finite"):
        gpu.check()
    assert torch.equal(gpu.transcoder.W_enc, before)
