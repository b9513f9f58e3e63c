"""A whole training step on a GPU, captured in a CUDA graph: nothing in it waits for the host."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pullback.ops.gpu import encoder, table
from pullback.ops.gradient import DictionaryParams, SparseGradient

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

N, D, F, K = 300, 96, 2000, 16


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


def step(
    x: Tensor, y: Tensor, state: list[DictionaryParams], t: Tensor, lr: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cuda = pytest.importorskip("pullback.ops.cuda")
    W_enc, b_enc, W_dec = state[0]
    values, indices = cuda.topk_select(torch.addmm(b_enc, x, W_enc.T), K, True)
    residual, dots, losses = cuda.decode_residual(values, indices, W_dec, None, y, True)
    starts, order = cuda.feature_order(indices.flatten(), F)
    rows = torch.arange(N, dtype=torch.int32, device="cuda").repeat_interleave(K, output_size=N * K)
    grad = SparseGradient(starts, order, rows, dots.flatten(), values.flatten(), x, residual)
    norm = cuda.gradient_norm(grad, W_dec, True, (t % 2).double() * 1e30)  # exact every other time
    t += 1
    scale = (1 / norm.sqrt()).clamp(max=1)
    switches = dict(betas=(0.9, 0.99), eps=1e-8, remove_parallel=True, unit_norm=True, lazy=False)
    cuda.adam_(grad, *state, scale, lr, t, **switches)
    return values, indices, losses, norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["chunks", "tiles"])
def test_a_captured_encoder_replays_to_the_same_bits(
    way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(table, "plan", lambda *_: table.Plan(way, rows=128, features=5000))
    x, W, b = numbers(0, N, D).to(dtype), numbers(2, 8 * F, D).to(dtype), numbers(3, 8 * F)
    encoder.topk_encode(x, W, b, K, True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = encoder.topk_encode(x, W, b, K, True)
    for seed in range(3):
        x.copy_(numbers(seed + 10, N, D))
        graph.replay()
        assert all(map(torch.equal, captured, encoder.topk_encode(x, W, b, K, True)))


def test_a_captured_step_replays_to_the_same_bits() -> None:
    pytest.importorskip("pullback._cuda", reason="pullback was built without CUDA")
    x, y, lr = numbers(0, N, D), numbers(1, N, D), torch.tensor(0.01, device="cuda")
    params = DictionaryParams(numbers(2, F, D), numbers(3, F), numbers(4, F, D))
    states = [[params, *(DictionaryParams(*map(torch.zeros_like, params)) for _ in range(2))]]
    states.append(copy.deepcopy(states[0]))
    times = [torch.zeros((), dtype=torch.int64, device="cuda") for _ in states]

    warm = copy.deepcopy(states[0])  # library handles are made outside of the capture
    step(x, y, warm, times[0].clone(), lr)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(x, y, states[0], times[0], lr)
    for _ in range(3):
        graph.replay()
        eager = step(x, y, states[1], times[1], lr)
        assert all(map(torch.equal, captured, eager))
    for got, expected in zip(states[0], states[1], strict=True):
        assert all(map(torch.equal, got, expected))
