"""A stand-in for the lens on a tiny made-up model, and planted data, so that these tests need no TransformerLens."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from pullback.transcoders import ModelReading, ReLU, Transcoder, TranscoderSet

D_MODEL, D_MLP, N_LAYERS, D_VOCAB, BOS = 12, 24, 2, 20, 0


class ToyLens:
    """resid = embedding; every layer adds MLP(resid); no attention. Speaks what training uses of
    `pullback.lens.Lens`."""

    n_layers, d_model, d_vocab, n_ctx = N_LAYERS, D_MODEL, D_VOCAB, 32
    device = torch.device("cpu")

    def __init__(self, seed=0, dtype=torch.float32, bos=None):
        g = torch.Generator().manual_seed(seed)

        def draw(*shape, scale=1.0):
            return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).to(dtype)

        self.W_E, self.W_U = draw(D_VOCAB, D_MODEL), draw(D_MODEL, D_VOCAB, scale=0.1)
        self.mlps = [
            (draw(D_MLP, D_MODEL, scale=0.5), draw(D_MLP), draw(D_MLP, D_MODEL, scale=0.5), draw(D_MODEL))
            for _ in range(N_LAYERS)
        ]
        self.model = type("Model", (), {"tokenizer": type("Tokenizer", (), {"bos_token_id": bos})()})()
        self.patches = {}
        self.forward_passes = 0
        self.seen = []

    def to_tokens(self, prompt):
        return torch.tensor([ord(c) % D_VOCAB for c in prompt])

    def tokenize(self, text):
        bos = self.model.tokenizer.bos_token_id
        return torch.cat([torch.tensor([] if bos is None else [bos], dtype=torch.long), self.to_tokens(text)])

    def check(self, sets):
        if sets.d_model != D_MODEL:
            raise ValueError("wrong width")

    def reading(self, layer):
        return ModelReading("toy", N_LAYERS, D_MODEL, D_VOCAB, "none", True, False, "0", layer=layer)

    def mlp(self, layer, x):
        W_in, b_in, W_out, b_out = self.mlps[layer]
        return (x @ W_in.T + b_in).relu() @ W_out + b_out

    def run(self, tokens):
        assert tokens.min() >= 0
        self.forward_passes += 1
        self.seen.append(tokens)
        resid, io = self.W_E[tokens], {}
        for layer in range(N_LAYERS):
            y = self.mlp(layer, resid)
            io[layer] = (resid, y)
            resid = resid + (self.patches[layer](resid, y) if layer in self.patches else y)
        return resid @ self.W_U, io

    def logits(self, tokens):
        return self.run(tokens)[0]

    def mlp_io(self, tokens, layers=None, hook_in="mlp.hook_in", hook_out="hook_mlp_out"):
        io = self.run(tokens)[1]
        if hook_in == hook_out:  # an autoencoder reads what it stands in for
            io = {layer: (y, y) for layer, (_, y) in io.items()}
        return {layer: io[layer] for layer in (range(N_LAYERS) if layers is None else layers)}

    def unhooked(self):
        return self

    @contextmanager
    def patch_mlp(self, fns, hook_in="mlp.hook_in", hook_out="hook_mlp_out"):
        if hook_in == hook_out:
            fns = {layer: lambda _x, y, fn=fn: fn(y, y) for layer, fn in fns.items()}
        before, self.patches = self.patches, self.patches | dict(fns)
        try:
            yield self
        finally:
            self.patches = before

    def exact(self):
        """A ReLU MLP is its own transcoder (METHODS 1.14-6)."""
        return TranscoderSet({layer: Transcoder(*mlp, activation=ReLU()) for layer, mlp in enumerate(self.mlps)})


@pytest.fixture
def lens(monkeypatch):
    monkeypatch.setattr("pullback.lens.as_lens", lambda model: model)
    return ToyLens()


@pytest.fixture
def tokens():
    """24 prompts of 10 tokens, none of them BOS (0)"""
    return torch.randint(1, D_VOCAB, (24, 10), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def planted():
    """planted(seed) -> (directions (64, 32), batch(n) -> x): sums of 3 of 64 unit vectors with weights U(.5, 1.5),
    METHODS 1.14-7."""

    def build(seed):
        g = torch.Generator().manual_seed(seed)
        directions = torch.nn.functional.normalize(torch.randn(64, 32, generator=g), dim=1)

        def batch(n):
            chosen = torch.rand(n, 64, generator=g).topk(3, dim=1).indices
            weights = torch.rand(n, 3, generator=g) + 0.5
            return torch.zeros(n, 64).scatter(1, chosen, weights) @ directions

        return directions, batch

    return build
