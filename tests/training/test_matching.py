"""The pairing by which recovered features are counted."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from tests.training.matching import best_matching


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (4, 4), (5, 6)])
def test_no_pairing_is_better(n, m):
    for seed in range(20):
        similarity = torch.randn(n, m, generator=torch.Generator().manual_seed(seed))
        best = max(sum(similarity[i, j] for i, j in enumerate(p)) for p in permutations(range(m), n)) / n
        assert best_matching(similarity) == pytest.approx(float(best), abs=1e-6)
