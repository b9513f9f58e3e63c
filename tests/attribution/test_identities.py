"""The exact identities of attribution graphs, in float64, over every wiring (METHODS section 6: O1 to O6)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pullback as pb
from pullback.attribution import Graph
from pullback.attribution import influence as inf
from pullback.attribution import nodes as k
from pullback.attribution.heads import Heads
from pullback.attribution.local import local_model
from pullback.causal import run_interventions
from pullback.lens import as_lens
from pullback.lens import record as rec
from tests import models

PLAIN = "LN-gqa-standard-plain"


def tokens_of(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, models.VOCAB, (n,), generator=torch.Generator().manual_seed(seed))


def assert_same_edges(a: Graph, b: Graph, rtol: float) -> None:
    """Edge by edge, relative to the largest edge of the graph; an edge that one lacks counts as 0."""
    dense = [_dense(x) for x in (a, b)]
    assert a.node_ids() == b.node_ids()
    assert float((dense[0] - dense[1]).abs().max()) <= rtol * float(dense[1].abs().max())
    assert torch.allclose(a.dropped, b.dropped, rtol=rtol, atol=rtol * float(dense[1].abs().max()))


def _dense(graph: Graph) -> torch.Tensor:
    """Adjacency, rows are targets."""
    out = torch.zeros(graph.n_nodes, graph.n_nodes, dtype=graph.weights.dtype)
    out[graph.rows(), graph.sources.long()] = graph.weights
    return out


@pytest.mark.parametrize("name", models.ALL)
def test_linear_engine_equals_autograd_and_sums_to_its_targets(name: str) -> None:
    lens = as_lens(models.build(name))
    sets = models.random_set(lens)
    linear = pb.attribute(lens, sets, tokens_of(6), max_n_logits=3, batch_size=16)
    oracle = pb.attribute(lens, sets, tokens_of(6), max_n_logits=3, engine="autograd")
    assert linear.check() <= 1e-9
    assert_same_edges(linear, oracle, 1e-9)
    errors = linear.of_kind(k.ERROR)
    assert float(linear.nodes.activation[errors].min()) > 1e-3, (
        "random transcoders must leave errors, or this tests little"
    )


@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "RMS-mha-rotary-gated", "neox-parallel"])
@pytest.mark.parametrize("hook_in", ["mlp.hook_in", "ln2.hook_normalized", "ln2.hook_out", "hook_resid_mid"])
@pytest.mark.parametrize("skip", [False, True])
def test_every_input_site_and_skip(name: str, hook_in: str, skip: bool) -> None:
    lens = as_lens(models.build(name))
    if hook_in == "hook_resid_mid" and lens.parallel:
        with pytest.raises(ValueError, match="parallel"):
            pb.attribute(lens, models.random_set(lens, hook_in=hook_in, skip=skip), tokens_of(5))
        return
    sets = models.random_set(lens, hook_in=hook_in, skip=skip)
    linear = pb.attribute(lens, sets, tokens_of(5), max_n_logits=2)
    oracle = pb.attribute(lens, sets, tokens_of(5), max_n_logits=2, engine="autograd")
    assert linear.check() <= 1e-9
    assert_same_edges(linear, oracle, 1e-9)


@given(
    seed=st.integers(0, 100),
    length=st.integers(1, models.N_CTX),
    layers=st.sets(st.integers(0, 2), min_size=1),
    activation=st.sampled_from(["topk", "relu", "jumprelu"]),
    k=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    zero=st.sampled_from([None, slice(0, 1), slice(0, 2)]),
    skip=st.booleans(),
    oracle=st.sampled_from([False, False, True]),
    name=st.sampled_from(["LN-gqa-standard-plain", "RMS-gqa-rotary-gated", "neox-parallel"]),
)
def test_identities_hold_whatever_the_set(
    seed: int,
    length: int,
    layers: set[int],
    activation: str,
    k: int,
    batch_size: int,
    zero: slice | None,
    skip: bool,
    oracle: bool,
    name: str,
) -> None:
    lens = as_lens(models.build(name))
    sets = models.random_set(lens, seed, layers=sorted(layers), activation=activation, k=k, skip=skip)
    kwargs = {"max_n_logits": 2, "zero_positions": zero}
    linear = pb.attribute(lens, sets, tokens_of(length, seed), batch_size=batch_size, **kwargs)
    assert linear.check() <= 1e-9
    if oracle:
        assert_same_edges(linear, pb.attribute(lens, sets, tokens_of(length, seed), engine="autograd", **kwargs), 1e-9)


@pytest.mark.parametrize(
    "name", ["LN-mha-standard-plain", "LNPre-gqa-rotary-plain", "RMS-gqa-rotary-gated", "neox-parallel"]
)
def test_float32_sums_to_1e_4(name: str) -> None:
    lens = as_lens(models.build(name, torch.float32))
    graph = pb.attribute(lens, models.random_set(lens), tokens_of(8))
    assert graph.weights.dtype == torch.float32
    assert graph.check() <= 1e-4


@pytest.mark.parametrize("n_layers", [1, 2])
def test_one_head_and_one_layer(n_layers: int) -> None:
    lens = as_lens(models.native(n_heads=1, d_head=16, n_layers=n_layers))
    sets = models.random_set(lens)
    linear = pb.attribute(lens, sets, tokens_of(5), max_n_logits=2)
    assert linear.check() <= 1e-9
    assert_same_edges(linear, pb.attribute(lens, sets, tokens_of(5), max_n_logits=2, engine="autograd"), 1e-9)


@pytest.mark.parametrize("name", ["LN-gqa-standard-plain", "RMS-mha-rotary-gated", "neox-parallel"])
def test_heads_sum_to_attention_output(name: str) -> None:
    """O3: per-head contributions and biases give attn_out . v"""
    lens = as_lens(models.build(name))
    t = local_model(lens, models.random_set(lens), tokens_of(6)).trace
    v = torch.randn(lens.d_model, dtype=torch.float64)
    for layer in t.layers:
        w = layer.weights
        x = w.ln1(layer.x_pre, layer.ln1_scale)
        group = w.W_O.shape[0] // w.W_V.shape[0]
        total = w.b_O @ v
        for h in range(w.W_O.shape[0]):
            OV_v = w.W_V[h // group] @ (w.W_O[h] @ v)
            total = total + layer.pattern[h] @ (x @ OV_v + w.b_V[h // group] @ w.W_O[h] @ v)
        assert torch.allclose(total, layer.attn_out @ v, atol=1e-9)


@pytest.mark.parametrize("name", ["LN-mha-standard-plain", "RMS-gqa-rotary-gated", "neox-parallel"])
@pytest.mark.parametrize("skip", [False, True])
def test_local_replacement_gives_the_models_logits(name: str, skip: bool) -> None:
    """O4: features, errors and biases put together are the MLP, so the model answers the same."""
    lens = as_lens(models.build(name))
    sets = models.random_set(lens, skip=skip)
    tokens = tokens_of(6)
    local = local_model(lens, sets, tokens)

    def put_together(i: int):  # noqa: ANN202
        layer = local.trace.layers[i]
        x = layer.read(sets.hook_in(i))
        W_skip = sets.skip(i)
        linear = 0 if W_skip is None else (x - layer.read_bias(sets.hook_in(i))) @ W_skip.T
        whole = sets.decode(local.acts, i) + local.errors[i] + local.mlp_bias[i] + linear
        return lambda _x, _y: whole[None]

    edits = rec.patch_edits({i: put_together(i) for i in sets.layers}, lens.sites(sets, sets.layers))
    replaced, _ = lens.record(tokens[None], [], edits)
    assert torch.allclose(replaced, lens.logits(tokens[None]), atol=1e-9)


@pytest.mark.parametrize("at_attention", [[], [1], [0, 1, 2]])
@pytest.mark.parametrize(
    "name", ["LN-mha-standard-plain", "LNPre-gqa-rotary-plain", "RMS-gqa-rotary-gated", "neox-parallel"]
)
def test_perturbing_a_feature_moves_targets_by_its_column(name: str, at_attention: list[int]) -> None:
    """O5: with all else frozen, doubling a feature adds its edge to every target."""
    lens = as_lens(models.build(name))
    sets, saes = models.random_set(lens), models.random_saes(lens, layers=at_attention) if at_attention else None
    tokens = tokens_of(6)
    graph = pb.attribute(lens, sets, tokens, max_n_logits=3, attention_saes=saes)
    adjacency = _dense(graph)
    n = graph.nodes
    features = graph.of_kind(*k.FEATURES).nonzero()[:, 0]
    targets = graph.of_kind(*k.FEATURES, k.LOGIT).nonzero()[:, 0]
    given = {"freeze": "all", "attention_saes": saes}
    before = run_interventions(lens, sets, tokens, [], **given)
    for s in features[:: len(features) // 12].tolist():
        layer, pos, feature, z = int(n.layer[s]), int(n.pos[s]), int(n.feature[s]), float(n.activation[s])
        one = pb.FeatureTarget(layer, pos, feature, attention=int(n.kind[s]) == k.ATTENTION_FEATURE)
        after = run_interventions(lens, sets, tokens, [(one, 2 * z)], **given)
        shift = after.logits[-1] - before.logits[-1]
        for t in targets.tolist():
            i = int(n.layer[t])
            if int(n.kind[t]) == k.LOGIT:
                moved = shift[n.feature[t]] - shift.mean()
            elif int(n.kind[t]) == k.FEATURE:
                moved = (after.inputs[i] - before.inputs[i])[n.pos[t]] @ sets[i].W_enc[n.feature[t]]
            else:
                moved = (after.attention[i] - before.attention[i])[n.pos[t]] @ saes[i].W_enc[n.feature[t]]
            assert abs(float(moved) - float(adjacency[t, s])) <= 1e-9 * max(1.0, float(adjacency.abs().max()))


def test_influence_is_the_inverse_and_leaves_carry_all_of_it() -> None:
    """O6: the Neumann series is (I - A)^-1 - I; with all columns counted, leaf influences sum to the logit weight."""
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    graph = pb.attribute(lens, models.random_set(lens), tokens_of(6))
    A = torch.zeros(graph.n_nodes, graph.n_nodes, dtype=torch.float64)
    A[graph.rows(), graph.sources.long()] = inf.normalized(graph, bias=True)
    w = graph.target_weights.double()
    eye = torch.eye(graph.n_nodes, dtype=torch.float64)
    inverse = torch.linalg.inv(eye - A) - eye
    influence = graph.influence(bias=True).double()
    assert torch.allclose(influence, w @ inverse, atol=1e-9)
    leaves = graph.of_kind(k.EMBEDDING, k.POSITION, k.ERROR, k.BIAS, k.OWN)
    assert abs(float(influence[leaves].sum()) - float(w.sum())) <= 1e-9
    tokens_and_errors = graph.influence()[graph.of_kind(k.EMBEDDING, k.ERROR)].sum()
    assert abs(float(tokens_and_errors) - float(w.sum())) <= 1e-9, (
        "without bias columns, tokens and errors carry it all"
    )


def test_batches_shrink_to_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from pullback.attribution import batches, gather
    from pullback.attribution.linear import sweep

    lens = as_lens(models.build("RMS-gqa-rotary-gated"))
    sets = models.random_set(lens)
    whole = pb.attribute(lens, sets, tokens_of(7))
    sizes = []

    def counted(local: Any, targets: Any) -> Any:
        sizes.append(len(targets))
        return gather.linear_rows(local, targets)

    monkeypatch.setattr(batches, "linear_rows", counted)
    monkeypatch.setattr(batches, "WORKING_MEMORY", 3 * sweep.bytes_per_target(local_model(lens, sets, tokens_of(7))))
    assert_same_edges(pb.attribute(lens, sets, tokens_of(7)), whole, 1e-12)
    assert max(sizes[1:]) == 3


def test_rows_do_not_depend_on_batch_mates_or_repetition() -> None:
    lens = as_lens(models.build("RMS-gqa-rotary-gated"))
    sets = models.random_set(lens)
    graphs = [pb.attribute(lens, sets, tokens_of(7), batch_size=b) for b in (1, 7, 512, 512)]
    assert torch.equal(graphs[2].weights, graphs[3].weights), "same inputs, same bits"
    for other in graphs[:2]:
        assert_same_edges(other, graphs[2], 1e-12)


def test_bfloat16_products_change_edges_by_their_rounding_only() -> None:
    lens = as_lens(models.build(PLAIN, torch.float32))
    sets = models.random_set(lens)
    exact = pb.attribute(lens, sets, tokens_of(9))
    rounded = pb.attribute(lens, sets, tokens_of(9), precision="bfloat16")
    assert rounded.meta["generation_settings"]["precision"] == "bfloat16"
    assert rounded.weights.dtype == torch.float32
    assert_same_edges(rounded, exact, 2e-2)
    assert not torch.equal(_dense(rounded), _dense(exact))
    a, b = (graph.influence().argsort().argsort().double() for graph in (rounded, exact))
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.99


def test_bfloat16_where_single_vectors_are_rounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, which spreads them by products with the rounded pattern."""
    lens = as_lens(models.build(PLAIN, torch.float32))
    sets = models.random_set(lens)
    exact = pb.attribute(lens, sets, tokens_of(9))
    made = Heads.__init__

    def rounded(self: Heads, *arguments: Any) -> None:
        made(self, *arguments)
        self.spreading = self.mixing

    monkeypatch.setattr(Heads, "__init__", rounded)
    assert_same_edges(pb.attribute(lens, sets, tokens_of(9), precision="bfloat16"), exact, 2e-2)


@pytest.mark.parametrize(
    ("dtype", "options", "sentence"),
    [
        (torch.float32, {"precision": "float16"}, "precision must be None or 'bfloat16'"),
        (torch.float64, {"precision": "bfloat16"}, "for the linear engine and models in at most float32"),
        (torch.float32, {"precision": "bfloat16", "engine": "autograd"}, "for the linear engine"),
    ],
)
def test_a_precision_that_makes_no_sense_is_refused(dtype: torch.dtype, options: dict[str, str], sentence: str) -> None:
    lens = as_lens(models.build(PLAIN, dtype))
    with pytest.raises(ValueError, match=sentence):
        pb.attribute(lens, models.random_set(lens), tokens_of(3), **options)  # pyright: ignore[reportArgumentType]
