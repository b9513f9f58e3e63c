"""Random transcoders of odd sizes."""

from __future__ import annotations

import pytest
import torch

from pullback.transcoders import BatchTopK, JumpReLU, ModelReading, ReLU, TopK, Transcoder

D_IN, D_SAE, D_OUT = 13, 37, 11

ACTIVATIONS = {
    "topk": TopK(5),
    "topk-signed": TopK(5, relu=False),
    "batch_topk": BatchTopK(4),
    "batch_topk-threshold": BatchTopK(4, 0.7),
    "jumprelu-number": JumpReLU(0.3),
    "jumprelu-vector": JumpReLU(torch.linspace(-0.2, 2.0, D_SAE)),
    "relu": ReLU(),
}


@pytest.fixture(params=ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
def activation(request):
    return request.param


@pytest.fixture
def make():
    """make(activation, skip=..., dtype=..., seed=..., d_in=..., d_out=...) -> Transcoder"""

    def build(activation, *, skip=False, dtype=torch.float32, seed=0, d_in=D_IN, d_out=D_OUT, **options):
        g = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

        W_skip = draw(d_out, d_in) if skip else None
        weights = (draw(D_SAE, d_in), draw(D_SAE), draw(D_SAE, d_out), draw(d_out), W_skip)
        return Transcoder(*weights, activation=activation, **options)

    return build


@pytest.fixture
def x():
    """Float[Tensor, '3 7 13']"""
    return torch.randn(3, 7, D_IN, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def reading():
    return ModelReading("toy", 2, D_IN, 50, "LN", True, False, "4.3.0", layer=1, mlp_fingerprint="ab" * 32)
