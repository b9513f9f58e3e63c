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
        backend.encode_gemm(x, W, b, h, maxima)
    with pytest.raises(ValueError, match=r"topk_exhaust_ \(triton\): tensors must be on a CUDA device"):
        backend.topk_exhaust_(h, h, b, x, W, b, True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnGpu:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("pad", [0, 3, 8])
    @pytest.mark.parametrize(("n", "d", "F"), [(1, 8, 64), (200, 768, 1000), (333, 131, 4099)])
    def test_gemm_and_maxima(self, dtype: torch.dtype, pad: int, n: int, d: int, F: int) -> None:
        from pullback.ops import triton as backend

        x, W = (torch.randn(rows, d + pad, device="cuda").to(dtype)[:, :d] for rows in (n, F))
        b = torch.randn(F, device="cuda")
        h, maxima = x.new_empty(n, F), x.new_empty(n, -(-F // 64))
        backend.encode_gemm(x, W, b, h, maxima)
        exact = x.double() @ W.double().T + b.double()
        size = x.double().abs() @ W.double().abs().T + b.double().abs()
        allowed = (d + 8) * 2.0**-23 * size + torch.finfo(dtype).eps * exact.abs() + 1e-6
        assert bool(((h.double() - exact).abs() <= allowed).all())
        padded = torch.nn.functional.pad(h, (0, -F % 64), value=-torch.inf)
        assert torch.equal(maxima, padded.unflatten(1, (-1, 64)).amax(2))

    def test_offsets_beyond_31_bits(self) -> None:
        from pullback.ops import triton as backend

        n, d, F = 2**12 + 8, 16, 2**19
        x, W = torch.randn(n, d, device="cuda").bfloat16(), torch.randn(F, d, device="cuda").bfloat16()
        h, maxima = x.new_empty(n, F), x.new_empty(n, F // 64)
        backend.encode_gemm(x, W, torch.zeros(F, device="cuda"), h, maxima)
        torch.testing.assert_close(h[-3:].float(), x[-3:].float() @ W.float().T, rtol=1e-2, atol=1e-2)
        assert torch.equal(maxima[-3:], h[-3:].unflatten(1, (-1, 64)).amax(2))

    @pytest.mark.parametrize(("n", "d"), [(3, 1), (200, 768), (50, 2304), (7, 5001)])
    def test_round_rows(self, n: int, d: int) -> None:
        from pullback.ops import triton as backend

        t, scale = torch.randn(n, d, device="cuda"), torch.full((), 0.25, device="cuda")
        t[0] *= 1e-30
        t[1] = 0
        got, expected = backend.round_rows(t, scale), reference.round_rows(t, scale)
        assert torch.equal(got[0], expected[0])
        for mine, theirs in zip(got[1:], expected[1:], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-18)

    def test_numbers_that_vary_compile_nothing(self) -> None:
        """Rows, k and entries are run-time numbers: whether one is 1, or divisible by 16, makes no new kernel."""
        from pullback.ops import triton as backend
        from pullback.ops.triton.launch import kernels

        W, b = torch.randn(640, 32, device="cuda").bfloat16(), torch.randn(640, device="cuda")

        def run(n: int, k: int) -> None:
            x = torch.randn(n, 32, device="cuda").bfloat16()
            h, maxima = x.new_empty(n, 640), x.new_empty(n, 10)
            backend.encode_gemm(x, W, b, h, maxima)
            found = reference.topk_select(h, k + 20, False)
            slack = torch.full((n,), 0.1, device="cuda")
            got = backend.topk_settle(*found, slack, 2.0**-7, x, W, b, k, True)
            backend.topk_exhaust_(*got, x, W, b, True)
            indptr = torch.arange(n + 1, device="cuda") * k
            backend.decode_csr(indptr, got[1].flatten(), got[0].flatten(), W)
            backend.sampled_dot(x, W, indptr, got[1].flatten())

        def compiled() -> int:
            used = [kernels.encode_gemm_descriptor_kernel, kernels.encode_gemm_kernel, kernels.narrow_kernel]
            used += [kernels.rescore_kernel, kernels.pick_kernel, kernels.exhaust_kernel]
            used += [kernels.decode_csr_kernel, kernels.sampled_dot_kernel]
            return sum(len(cache[0]) for kernel in used for cache in kernel.device_caches.values())

        run(33, 20)
        before = compiled()
        for n, k in [(1, 16), (16, 20), (48, 17), (100, 30)]:
            run(n, k)
        assert compiled() == before

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
