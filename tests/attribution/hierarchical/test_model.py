"""Gated attribution against the model itself: features live in it, and hooks that gate their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.attribution import nodes as k
from pullback.attribution.hierarchical import Gate
from pullback.attribution.hierarchical.gates import gated
from pullback.attribution.local import local_model
from pullback.lens import Lens, as_lens
from pullback.lens import record as rec
from pullback.transcoders import LayeredDictionary
from tests import models
from tests.attribution.hierarchical.test_gates import at
from tests.attribution.test_identities import tokens_of

TOKEN = 4
Target = tuple[int, int, int] | None
"""Layer, position and id of a feature; None: the token's demeaned logit at the end."""


def by_the_model(
    lens: Lens, sets: LayeredDictionary, tokens: Tensor, target: Target, keeps: Callable[[Tensor], Tensor]
) -> dict[tuple[int, ...], float]:
    """{(kind, layer, pos, feature): attribution} of features, errors and embeddings, one backward pass."""
    local = local_model(lens, sets, tokens)
    L = local.n_layers
    sets = local.sets
    layouts = {i: (local.acts[i].rows(), local.acts[i].indices.long()) for i in range(L)}
    live: dict[int, Tensor] = {}
    errors = [e.clone().requires_grad_() for e in local.errors]
    embed = local.trace.embed.clone().requires_grad_()
    sites = {i: (lens.input_site(i, sets.hook_in(i)), f"blocks.{i}.hook_mlp_out") for i in range(L)}

    def write(i: int) -> Callable[[Tensor, Tensor], Tensor]:
        def fn(x: Tensor, _y: Tensor) -> Tensor:
            rows, ids = layouts[i]
            a = (x[0][rows] * sets.encoder_rows(i, ids)).sum(-1) + sets.b_enc(i)[ids]
            assert torch.allclose(a.detach(), local.acts[i].values, rtol=1e-9)
            live[i] = a
            a.retain_grad()
            value = a.detach()

            def gate(g: Tensor) -> Tensor:
                own = torch.zeros_like(g, dtype=torch.bool)
                if target is not None and target[0] == i:
                    own = (rows == target[1]) & (ids == target[2])
                return torch.where(keeps(value * g) | own, g, torch.zeros_like(g))

            a.register_hook(gate)
            out = torch.zeros_like(local.trace.embed).index_add(0, rows, a[:, None] * sets.decoder_rows(i, ids, i))
            return (out + errors[i] + sets.b_dec(i))[None]

        return fn

    frozen = [(f"blocks.{i}.attn.hook_pattern", torch.Tensor.detach) for i in range(L)]
    frozen += rec.detached_norms(lens.model)
    edits = [("hook_embed", lambda _t: embed[None]), *frozen, *rec.patch_edits({i: write(i) for i in range(L)}, sites)]
    with torch.enable_grad():
        logits, _ = rec.record(lens.model, tokens[None], [f"blocks.{L - 1}.hook_resid_post"], edits)
        assert torch.allclose(logits[0].detach(), local.trace.logits, atol=1e-9)
        if target is None:
            root = logits[0, -1, TOKEN] - logits[0, -1].mean()
        else:
            i, pos, feature = target
            rows, ids = layouts[i]
            root = live[i][(rows == pos) & (ids == feature)].sum()
        root.backward()
    found: dict[tuple[int, ...], float] = {}
    for i in range(L):
        rows, ids = layouts[i]
        grad = live[i].grad
        grad = torch.zeros_like(live[i]) if grad is None else grad
        for p, f, v in zip(rows.tolist(), ids.tolist(), (grad * live[i].detach()).tolist(), strict=True):
            found[k.FEATURE, i, p, f] = v
        at_error = errors[i].grad
        if at_error is not None:
            for p, v in enumerate((at_error * local.errors[i]).sum(-1).tolist()):
                found[k.ERROR, i, p] = v
    assert embed.grad is not None
    for p, v in enumerate((embed.grad * local.trace.embed).sum(-1).tolist()):
        found[k.EMBEDDING, p] = v
    return found


@pytest.mark.parametrize(
    "gate", [(-math.inf, "signed"), (0.0, "signed"), (0.05, "signed"), (0.3, "signed"), (0.3, "abs")]
)
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "RMS-mha-rotary-gated", "neox-parallel"])
def test_gates_on_the_graph_equal_gates_in_the_model(name: str, local: bool, gate: tuple[float, str]) -> None:
    tau, mode = gate
    lens = as_lens(models.build(name))
    sets, tokens = models.random_set(lens), tokens_of(5)
    if local:
        lm = local_model(lens, sets, tokens)
        a = lm.acts[2]
        here = (a.rows() == 4).nonzero()[:, 0]
        f = int(a.indices[here[a.values[here].argmax()]])
        asked, target = pb.FeatureTarget(2, 4, f), (2, 4, f)
    else:
        asked, target = TOKEN, None
    graph = pb.attribute(lens, sets, tokens, attribution_targets=asked)
    t = int(graph.explained.nonzero()[0])
    _, through = gated(graph, at(graph, t), Gate(tau, mode))
    truth = by_the_model(lens, sets, tokens, target, lambda x: (x.abs() if mode == "abs" else x) > tau)
    scale = max(abs(v) for v in truth.values())
    n = graph.nodes
    for j, kind in enumerate(n.kind.tolist()):
        layer, pos, feature = int(n.layer[j]), int(n.pos[j]), int(n.feature[j])
        keys = {k.FEATURE: (kind, layer, pos, feature), k.ERROR: (kind, layer, pos), k.EMBEDDING: (kind, pos)}
        if kind in keys and j != t:
            assert abs(float(through[j]) - truth.get(keys[kind], 0.0)) <= 1e-9 * scale, keys[kind]
