"""Huge pages change how memory is backed, never what is in it."""

from __future__ import annotations

import pytest
import torch

from pullback import _C, ops
from pullback.ops.cpu.borrow import view


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (3,), (700, 3000), (5_000_003,)])
def test_contents_stay(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    t = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).remainder(251).to(dtype).view(shape)
    before = t.clone()
    assert ops.on_huge_pages(t) is t
    _C.prefer_huge_pages(view(t))
    assert torch.equal(t, before)


def test_memory_with_gaps_is_refused() -> None:
    with pytest.raises(ValueError, match="prefer_huge_pages: memory must be contiguous"):
        _C.prefer_huge_pages(view(torch.zeros(4, 6)[:, ::2]))
