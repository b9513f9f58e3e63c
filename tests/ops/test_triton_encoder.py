"""The Triton encoder: interpreted everywhere, compiled where there is a GPU (and whole in `test_gpu_encoder`)."""

from __future__ import annotations

import pytest
import torch

from pullback.ops import reference
from tests.ops.interpreter import run_interpreted

pytest.importorskip("triton", reason="triton is not installed")


def test_in_the_interpreter() -> None:
    run_interpreted("triton_encoder_interpreted.py")


def test_what_does_not_fit_is_refused() -> None:
    from pullback.ops import triton as backend

    x, W, b = torch.zeros(2, 8), torch.zeros(70, 8), torch.zeros(70)
    h, maxima = torch.zeros(2, 70), torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"encode_gemm \(triton\): tensors must be on a CUDA device, got cpu"):
        backend.encode_gemm(x, W, b, h, maxima, False)
    with pytest.raises(ValueError, match=r"topk_exhaust_ \(triton\): tensors must be on a CUDA device"):
        backend.topk_exhaust_(h, h, b, x, W, b, True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnGpu:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("tf32", [False, True])
    @pytest.mark.parametrize("pad", [0, 3, 8])
    @pytest.mark.parametrize(("n", "d", "F"), [(1, 8, 64), (200, 768, 1000), (333, 131, 4099)])
    def test_gemm_and_maxima(self, dtype: torch.dtype, tf32: bool, pad: int, n: int, d: int, F: int) -> None:
        from pullback.ops import triton as backend

        x, W = (torch.randn(rows, d + pad, device="cuda").to(dtype)[:, :d] for rows in (n, F))
        b = torch.randn(F, device="cuda")
        h, maxima = x.new_empty(n, F), x.new_empty(n, -(-F // 64))
        backend.encode_gemm(x, W, b, h, maxima, tf32)
        exact = x.double() @ W.double().T + b.double()
        size = x.double().abs() @ W.double().abs().T + b.double().abs()
        relative = (d + 8) * 2.0**-23 + 2.0**-9 * (tf32 and dtype == torch.float32)
        allowed = relative * size + torch.finfo(dtype).eps * exact.abs() + 1e-6
        assert bool(((h.double() - exact).abs() <= allowed).all())
        padded = torch.nn.functional.pad(h, (0, -F % 64), value=-torch.inf)
        assert torch.equal(maxima, padded.unflatten(1, (-1, 64)).amax(2))

    def test_offsets_beyond_31_bits(self) -> None:
        from pullback.ops import triton as backend

        n, d, F = 2**12 + 8, 16, 2**19
        x, W = torch.randn(n, d, device="cuda").bfloat16(), torch.randn(F, d, device="cuda").bfloat16()
        h, maxima = x.new_empty(n, F), x.new_empty(n, F // 64)
        backend.encode_gemm(x, W, torch.zeros(F, device="cuda"), h, maxima, False)
        torch.testing.assert_close(h[-3:].float(), x[-3:].float() @ W.float().T, rtol=1e-2, atol=1e-2)
        assert torch.equal(maxima[-3:], h[-3:].unflatten(1, (-1, 64)).amax(2))

    @pytest.mark.parametrize("k", [1, 20, 300])
    def test_settle_and_exhaust(self, k: int) -> None:
        from pullback.ops import triton as backend

        torch.manual_seed(0)
        x, W, b = torch.randn(50, 99), torch.randn(3000, 99), torch.randn(3000)
        exact = (x.double() @ W.double().T + b.double()).float()
        found = reference.topk_select(exact + torch.empty_like(exact).uniform_(-0.02, 0.02), k + 40, False)
        slack = torch.full((50,), 0.02)
        arguments = (*found, slack, 0.0, x, W, b, k, True)
        got = backend.topk_settle(*(t.cuda() if isinstance(t, torch.Tensor) else t for t in arguments))
        for mine, expected in zip(got, reference.topk_settle(*arguments), strict=True):
            assert torch.equal(mine.cpu(), expected)
        everything = torch.ones(50, dtype=torch.int8)
        backend.topk_exhaust_(got[0], got[1], everything.cuda(), x.cuda(), W.cuda(), b.cuda(), True)
        expected = reference.topk_encode(x, W, b, k, True)
        assert torch.equal(got[1].cpu(), expected[1])
        assert torch.equal(got[0].cpu(), expected[0])
