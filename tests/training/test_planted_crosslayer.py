"""Training recovers a planted cross-layer dictionary: its features, and which layers each of them writes to."""

from __future__ import annotations

import pytest
import torch

from pullback.training import TrainConfig
from pullback.training.runs import new_run
from tests.training.matching import best_matching
from tests.training.test_planted import JUMPRELU

L, D, F, STEPS, N = 3, 24, 40, 600, 512


class Planted:
    """Features of layer l read unit vectors of that layer, and write unit vectors to it, to the layers above, or both.
    Tied per target, feature i of every layer writes to all of them, and to each the same as the i-th of the others.

    Attributes:
        reads: (L, F, D); writes: (L, L, F, D), zero where feature i of layer l does not write to layer m.
    """

    def __init__(self, seed: int, tied: bool = False) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.reads = torch.nn.functional.normalize(self._draw(L, F, D), dim=-1)
        writes = torch.nn.functional.normalize(self._draw(1 if tied else L, L, F, D), dim=-1)
        chosen = torch.rand(L, L, F, generator=self.random) < (1 if tied else 0.5)
        chosen |= torch.eye(L, dtype=torch.bool)[..., None]  # at least to its own
        self.chosen = chosen & torch.ones(L, L, dtype=torch.bool).triu()[..., None]
        self.writes = writes * self.chosen[..., None]

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random)

    def batch(self, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features (L, n, F), inputs (L, n, D) and targets (L, n, D)."""
        kept = torch.rand(L, n, F, generator=self.random).topk(3, dim=-1).indices
        z = torch.zeros(L, n, F).scatter(-1, kept, torch.rand(L, n, 3, generator=self.random) + 0.5)
        return z, z @ self.reads, torch.einsum("lnf,lmfd->mnd", z, self.writes)


def trained(planted: Planted, **settings):
    config = TrainConfig(
        d_sae=2 * F,
        k=3,
        lr=5e-3,
        train_batch_size_tokens=N,
        training_tokens=STEPS * N,
        cross_layer=True,
        **settings,
    )
    run = new_run(config, dict.fromkeys(range(L), (D, D)), torch.device("cpu"), {})
    for step in range(STEPS):
        _, x, y = planted.batch(N)
        run.step([t for layer in range(L) for t in (x[layer], y[layer])], config.lr_at(step))
    return run.dictionary()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "settings"),
    [(0, {}), (1, {"architecture": "batchtopk"}), (11, JUMPRELU), (11, {"decoder_tying": "per_target"})],
    ids=["topk", "batchtopk", "jumprelu", "tied"],
)
def test_features_and_their_blocks_are_found(seed, settings):
    planted = Planted(seed, tied="decoder_tying" in settings)
    clt = trained(planted, seed=seed, **settings)
    for layer in range(L):
        true = torch.cat([planted.writes[layer, m] for m in clt.targets(layer)], 1)
        ours = torch.cat([clt.decoder(layer, m) for m in clt.targets(layer)], 1)
        cosines = torch.nn.functional.normalize(true, dim=1) @ torch.nn.functional.normalize(ours, dim=1).T
        assert float(cosines.amax(1).mean()) >= 0.97
        assert best_matching(cosines) >= 0.9
        match = cosines.argmax(1)
        for m in clt.targets(layer):
            block, wanted = clt.decoder(layer, m)[match], planted.chosen[layer, m]
            share = block.norm(dim=1) / ours[match].norm(dim=1) * true.norm(dim=1)  # of unit writes
            assert float(share[wanted].mean()) > 0.9
            assert not (~wanted).any() or float(share[~wanted].mean()) < 0.15
            if wanted.any():
                match_here = torch.nn.functional.cosine_similarity(block, planted.writes[layer, m])[wanted]
                assert float(match_here.mean()) >= 0.97
    _, x, y = planted.batch(2048)
    made = clt({layer: x[layer] for layer in range(L)})
    for layer in range(L):
        unexplained = (y[layer] - made[layer]).square().sum() / (y[layer] - y[layer].mean(0)).square().sum()
        assert float(unexplained) < 0.12
