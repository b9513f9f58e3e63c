"""Every sparsity rule on the sparse gradient path: its loss and gradients are those of dense autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pullback.ops import screen_counts, use_backend
from pullback.ops.cpu import screen as screen_kernels
from pullback.ops.reference.gradient import dense_gradient
from pullback.ops.screen import multiplies_bf16
from pullback.training import Recipe, TrainingDiverged, TrainStep
from pullback.transcoders import BatchTopK, JumpReLU, ReLU, TopK
from tests.training.dense import dense_loss

NOTHING = {"max_grad_norm": None, "auxk_alpha": 0}
RECIPES = {
    "topk": (TopK(3), {}),
    "topk with negatives": (TopK(3, relu=False), {}),
    "topk, k anneals": (TopK(2), {"k_start": 6, "k_anneal_steps": 4}),
    "batchtopk": (BatchTopK(3), {}),
    "batchtopk, paper": (BatchTopK(3), {"loss": "paper", "k_start": 1, "k_anneal_steps": 4}),
    "relu": (ReLU(), {"l1_coefficient": 0.05}),
    "relu, weighted": (ReLU(), {"l1_coefficient": 0.05, "l1_warm_up_steps": 5, "weight_by_decoder_norm": True}),
    "relu, reference": (ReLU(), {"l1_coefficient": 1e-3, "loss": "reference"}),
    "relu, reference residual": (ReLU(), {"loss": "reference", "residual": "reference"}),
    "jumprelu": (JumpReLU(0.2), {"jumprelu_bandwidth": 0.5, "l0_coefficient": 0.01}),
    "jumprelu, wide": (JumpReLU(0.2), {"jumprelu_bandwidth": 2.0, "l0_warm_up_steps": 4, "loss": "paper"}),
    "jumprelu, tanh": (JumpReLU(0.2), {"jumprelu_sparsity_loss_mode": "tanh", "jumprelu_bandwidth": 0.5}),
    "jumprelu, tanh, weighted": (
        JumpReLU(0.3),
        {
            "jumprelu_sparsity_loss_mode": "tanh",
            "jumprelu_bandwidth": 0.8,
            "weight_by_decoder_norm": True,
            "pre_act_loss_coefficient": 0.01,
        },
    ),
    "jumprelu, lifted": (JumpReLU(0.3), {"pre_act_loss_coefficient": 0.01, "jumprelu_bandwidth": 0.5}),
    "matryoshka topk": (TopK(4), {"matryoshka_widths": (3, 7)}),
    "matryoshka batchtopk": (BatchTopK(4), {"matryoshka_widths": (1, 5, 11)}),
    "matryoshka, reference": (BatchTopK(4), {"matryoshka_widths": (5,), "loss": "reference"}),
}


def rows(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def captured(step):
    """A list that fills with the gradients, by weight, that the optimizer of `step` sees."""
    seen, take_step = [], step.optimizer.step

    def recorded(gradient, scale, *rest):
        parts = dense_gradient(gradient.features)._asdict() | gradient.dense()
        seen.append({name: scale.to(part.dtype) * part for name, part in parts.items()})
        take_step(gradient, scale, *rest)

    step.optimizer.step = recorded
    return seen


def a_step(case, d_in=6, d_out=6, d_sae=13, seed=0, **how):
    """Some steps into training, with decoder rows of many norms where they may have any."""
    activation, recipe = RECIPES[case]
    settings = dict(activation=activation, recipe=Recipe(**recipe), dtype=torch.float64, lr=1e-2, seed=seed)
    step = TrainStep(d_in, d_out, d_sae, **settings | {"max_grad_norm": None} | how)
    if not step.optimizer.decoder_norm:
        step.transcoder.W_dec.copy_(rows(d_sae, d_out, seed + 50))
    return step


def agrees(step, x, y, seen):
    loss, wanted = dense_loss(step, x, y, seen)
    gradients = captured(step)
    torch.testing.assert_close(step(x, y), loss, rtol=1e-9, atol=1e-12)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[-1][name], gradient, rtol=1e-9, atol=1e-11, msg=f"{name}: {gradient}")


@pytest.mark.parametrize("case", RECIPES)
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_loss_and_gradients_are_those_of_dense_autograd(case, skip):
    """Three steps into training, with dead features."""
    step = a_step(case, skip_connection=skip, auxk_k=3, auxk_alpha=0.5, dead_feature_window=60)
    batches = [(rows(20, 6, 10 + i), rows(20, 6, 20 + i) + 1) for i in range(4)]
    for x, y in batches[:3]:
        step(x, y)
    step.tokens_since_fired[:5] = 60
    x, y = batches[3]
    agrees(step, x, y, torch.cat([y for _, y in batches]))


@pytest.mark.parametrize("case", RECIPES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_gradients_agree_at_any_shape(case, data):
    n, d_in, d_out = (data.draw(st.integers(1, 9)) for _ in range(3))
    d_sae = data.draw(st.integers(12, 40))
    if "residual" in RECIPES[case][1]:
        d_out = d_in
    step = a_step(case, d_in, d_out, d_sae, data.draw(st.integers(0, 99)), auxk_k=2, dead_feature_window=10)
    first, second = ((rows(n, d_in, s), rows(n, d_out, s + 1)) for s in (2, 4))
    step(*first)
    step.tokens_since_fired[: data.draw(st.integers(0, 4))] = 10
    step.transcoder.b_enc[4:8] -= data.draw(st.floats(0, 5))  # fewer features than there are places for
    agrees(step, *second, torch.cat([first[1], second[1]]))


@pytest.mark.parametrize("case", ["topk", "batchtopk", "matryoshka batchtopk"])
def test_gradients_agree_where_pre_activations_tie(case):
    step = a_step(case, d_sae=20)
    step(rows(9, 6), rows(9, 6, 1))
    tc = step.transcoder
    for weight in (tc.W_enc, tc.b_enc):  # in quarters, so that sums are exact in any order
        weight.copy_((4 * weight).round() / 4)
        weight[10:] = weight[:10]
    x = rows(4, 6, 7).round().repeat(2, 1)
    agrees(step, x, rows(8, 6, 3), torch.cat([rows(9, 6, 1), rows(8, 6, 3)]))


@pytest.mark.parametrize("case", RECIPES)
def test_training_lowers_the_loss_and_keeps_weights_finite(case):
    step = a_step(case, d_sae=40, max_grad_norm=1.0, dead_feature_window=500, dtype=torch.float32)
    mixing = rows(6, 6, 3, torch.float32)
    losses = []
    for i in range(200):
        x = rows(64, 6, i, torch.float32)
        step(x, (x @ mixing).relu())
        losses.append(float(step.stats.fvu))
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    assert all(w.isfinite().all() for w in step.transcoder.parameters())


@pytest.mark.parametrize("case", RECIPES)
def test_nan_is_refused_and_moves_nothing(case):
    step = a_step(case)
    step(rows(9, 6), rows(9, 6, 1))
    before = {name: w.clone() for name, w in step.transcoder.state_dict().items()}
    rule = step.transcoder.activation
    bad = rows(9, 6)
    bad[2, 1] = torch.nan
    for x, y in ((bad, rows(9, 6)), (rows(9, 6), bad)):
        with pytest.raises(TrainingDiverged, match="1 of 9 (inputs|targets) at step 1"):
            step(x, y)
    assert all(torch.equal(w, before[name]) for name, w in step.transcoder.state_dict().items())
    assert step.transcoder.activation == rule


@pytest.mark.parametrize("case", RECIPES)
def test_a_late_step_takes_no_nan_into_the_rule(case):
    """As on a GPU, which says in the next step what went wrong."""
    steps = [a_step(case) for _ in range(2)]
    steps[0]._late = True
    for step in steps:
        for i in range(3):
            step(rows(9, 6, i), rows(9, 6, 9 + i))
    steps[0](rows(9, 6), rows(9, 6) * torch.nan)
    with pytest.raises(TrainingDiverged, match="not finite at step 3"):
        steps[0].check()
    for step in steps:
        step(rows(9, 6, 5), rows(9, 6, 6))
    late, prompt = (step.transcoder for step in steps)
    for name, weight in prompt.state_dict().items():
        assert torch.equal(weight, late.state_dict()[name]), name
    assert late.activation == prompt.activation


def trained(case, n_steps=6, **how):
    step = a_step(case, d_sae=30, dead_feature_window=40, auxk_k=3, skip_connection=True, **how)
    for i in range(n_steps):
        x = rows(16, 6, i, step.transcoder.dtype)
        step(x, x.abs())
    return step.transcoder.state_dict()


@pytest.mark.parametrize("case", RECIPES)
def test_the_reference_backend_takes_the_same_steps(case):
    found = trained(case)
    with use_backend("reference"):
        for name, weight in trained(case).items():
            torch.testing.assert_close(found[name], weight, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("case", RECIPES)
def test_torch_defaults_of_dtype_and_device_change_nothing(case):
    expected = trained(case, dtype=torch.float32)
    batches = [rows(16, 6, i, torch.float32) for i in range(6)]
    step = a_step(case, d_sae=30, dead_feature_window=40, auxk_k=3, skip_connection=True, dtype=torch.float32)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        other = TrainStep(6, 6, 30, activation=step.activation, recipe=step.recipe, dtype=torch.float32)
        assert other.transcoder.W_enc.device.type == "cpu"
        for x in batches:
            step(x, x.abs())
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(weight, expected[name]) for name, weight in step.transcoder.state_dict().items())


# --- BatchTopK


def test_batchtopk_keeps_k_a_row_on_average():
    step = a_step("batchtopk", d_sae=40)
    step(rows(30, 6), rows(30, 6, 1))
    assert float(step.stats.l0) == 3


def test_the_threshold_is_the_mean_of_the_smallest_values_kept():
    step = TrainStep(6, 6, 40, activation=BatchTopK(3), recipe=Recipe(topk_threshold_lr=0.25), dtype=torch.float64)
    smallest = []
    for i in range(4):
        x = rows(20, 6, i)
        if i > 0:
            smallest.append(BatchTopK(3).encode(x, step.transcoder.W_enc, step.transcoder.b_enc).values.min())
        step(x, x)
        if i == 0:
            smallest.append(torch.tensor(step.transcoder.activation.threshold, dtype=torch.float64))
    weights = torch.tensor([0.75**3, 0.75**2, 0.75, 1.0], dtype=torch.float64)
    expected = (weights * torch.stack(smallest)).sum() / weights.sum()
    assert step.transcoder.activation.threshold == pytest.approx(float(expected), rel=1e-12)


def test_with_the_threshold_rows_have_k_features_on_average():
    """METHODS 5.4: within 5 % on the same data."""
    step = TrainStep(16, 16, 200, activation=BatchTopK(5), lr=1e-3)
    for i in range(300):
        x = rows(256, 16, i, torch.float32)
        step(x, x.relu())
    fresh = rows(2048, 16, 1000, torch.float32)
    assert step.transcoder.encode(fresh).nnz / 2048 == pytest.approx(5, rel=0.05)
    assert step.transcoder.encode(fresh[:1]).nnz == (step.transcoder.encode(fresh).indptr.diff()[0])


def test_batchtopk_of_all_features_is_relu():
    steps = [
        TrainStep(6, 6, 20, activation=activation, dtype=torch.float64, recipe=Recipe(loss="fvu", l1_coefficient=0.0),
                  decoder_norm=True)
        for activation in (BatchTopK(20), ReLU())
    ]  # fmt: skip
    for i in range(5):
        losses = [float(step(rows(9, 6, i), rows(9, 6, i + 50))) for step in steps]
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)


# --- JumpReLU


def test_theta_learns_and_is_what_inference_uses():
    step = a_step("jumprelu", d_sae=40)
    for i in range(20):
        step(rows(50, 6, i), rows(50, 6, i + 50))
    tc = step.transcoder
    theta = step.rule.weights["log_theta"].exp()
    assert torch.equal(tc.activation.theta, theta)
    assert (theta - 0.2).abs().max() > 1e-3
    h = rows(30, 6, 99) @ tc.W_enc.T + tc.b_enc
    torch.testing.assert_close(tc.encode(rows(30, 6, 99)).to_dense(), torch.where(h > theta, h, 0))


def test_thetas_may_start_at_one_a_feature():
    theta = torch.linspace(0.1, 0.5, 13)
    step = TrainStep(6, 6, 13, activation=JumpReLU(theta))
    torch.testing.assert_close(step.transcoder.activation.theta, theta)


def test_dead_features_are_lifted_until_they_fire():
    for coefficient, alive in ((0.0, False), (0.05, True)):
        recipe = Recipe(pre_act_loss_coefficient=coefficient)
        step = TrainStep(6, 6, 40, activation=JumpReLU(0.1), recipe=recipe, lr=1e-2, dead_feature_window=200)
        step(rows(64, 6, 0, torch.float32), rows(64, 6, 1, torch.float32))
        step.transcoder.b_enc[:8] = -5.0
        for i in range(600):
            x = rows(64, 6, i, torch.float32)
            step(x, x.relu())
        assert bool((step.tokens_since_fired[:8] < 2000).all()) == alive


# --- starts, schedules, refusals


def test_wide_dictionaries_start_sparse():
    for activation in (ReLU(), JumpReLU(0.3)):
        step = TrainStep(16, 16, 400, activation=activation, recipe=Recipe(initial_l0=20))
        x = rows(500, 16, 0, torch.float32) + 1
        step(x, x)
        assert float(step.stats.l0) == pytest.approx(20, rel=0.05)


def test_biases_start_where_the_recipe_says():
    x, y = rows(101, 4) + 3, rows(101, 5, 1).exp()
    for method in ("mean", "geometric_median", "zeros"):
        step = TrainStep(4, 5, 8, k=2, lr=1e-12, dtype=torch.float64, recipe=Recipe(b_dec_init_method=method))
        step(x, y)
        b = step.transcoder.b_dec
        if method == "mean":
            torch.testing.assert_close(b, y.mean(0), rtol=0, atol=1e-9)
        elif method == "zeros":
            assert b.abs().max() < 1e-9
            assert step.transcoder.b_enc.abs().max() < 1e-9
        else:  # where the pulls of all rows cancel
            assert torch.nn.functional.normalize(y - b, dim=1).mean(0).norm() < 1e-6


@pytest.mark.parametrize(("init", "norm"), [("tenth", 0.1), ("tied", 1.0), ("zero", 0.0)])
def test_decoder_rows_start_where_the_recipe_says(init, norm):
    tc = TrainStep(6, 6, 20, k=3, recipe=Recipe(decoder_init=init)).transcoder
    torch.testing.assert_close(tc.W_dec, norm * tc.W_enc)


def test_relu_keeps_unit_rows_unless_the_penalty_is_weighted():
    for weighted in (False, True):
        step = TrainStep(6, 6, 20, activation=ReLU(), lr=1e-2, recipe=Recipe(weight_by_decoder_norm=weighted))
        for i in range(10):
            step(rows(30, 6, i, torch.float32), rows(30, 6, i + 50, torch.float32))
        norms = step.transcoder.W_dec.norm(dim=1)
        assert bool(((norms - 1).abs() < 1e-5).all()) != weighted


def test_k_moves_linearly_from_its_start():
    recipe = Recipe(k_start=20, k_anneal_steps=4)
    assert [recipe.k_at(step, 4) for step in range(6)] == [20, 16, 12, 8, 4, 4]
    step = TrainStep(6, 6, 40, k=4, recipe=recipe)
    widths = []
    for i in range(6):
        step(rows(9, 6, i, torch.float32), rows(9, 6, i, torch.float32))
        widths.append(float(step.stats.l0))
    assert widths[0] > widths[2] > widths[5]
    assert step.transcoder.activation == TopK(4)


def test_coefficients_rise_linearly():
    recipe = Recipe(l1_coefficient=2.0, l1_warm_up_steps=4, l0_coefficient=3.0)
    assert [recipe.l1_at(step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert recipe.l0_at(0) == 3.0


def test_the_state_of_a_rule_travels():
    for case in ("batchtopk", "jumprelu", "matryoshka batchtopk"):
        step, other = a_step(case), a_step(case)
        for i in range(3):
            step(rows(9, 6, i), rows(9, 6, i + 9))
        other.transcoder.load_state_dict(step.transcoder.state_dict())
        other.rule.load_state_dict(step.rule.state_dict(), other.features)
        assert other.transcoder.activation == step.transcoder.activation


@pytest.mark.parametrize(
    ("activation", "recipe", "sizes", "sentence"),
    [
        (
            TopK(2),
            {"l1_coefficient": 0.1},
            (4, 4),
            "is a penalty of ReLU, and TopK has none .* architecture='standard'",
        ),
        (ReLU(), {"l0_coefficient": 0.1}, (4, 4), "is a penalty of JumpReLU, and ReLU has none like it"),
        (ReLU(), {"matryoshka_widths": [4]}, (4, 4), "matryoshka_widths goes with TopK or BatchTopK, not ReLU"),
        (TopK(2), {"matryoshka_widths": [4, 9]}, (4, 4), r"must not exceed d_sae=8, got \[4, 9\]"),
        (TopK(2), {"matryoshka_widths": [4, 4]}, (4, 4), "matryoshka_widths must be positive and ascend"),
        (TopK(2), {"k_start": 9, "k_anneal_steps": 3}, (4, 4), "k_start=9 exceeds d_sae=8"),
        (TopK(2), {"k_start": 4}, (4, 4), "k_start and k_anneal_steps go together"),
        (ReLU(), {"loss": "reference", "residual": "reference"}, (4, 5), "compares inputs with outputs, of one width"),
        (TopK(2), {"decoder_init": "tied"}, (4, 5), "needs inputs and targets of one width"),
        (ReLU(), {"decoder_init": "zero"}, (4, 4), "has no unit norm"),
        (JumpReLU(0.0), {}, (4, 4), "theta of a JumpReLU must be positive"),
        (TopK(2), {"loss": "mse"}, (4, 4), "loss must be one of None, fvu, paper, reference, got 'mse'"),
        (JumpReLU(0.1), {"jumprelu_bandwidth": 0}, (4, 4), "jumprelu_bandwidth must be positive"),
        (ReLU(), {"l1_coefficient": float("nan")}, (4, 4), "l1_coefficient must not be negative"),
        (BatchTopK(2), {"topk_threshold_lr": 0}, (4, 4), r"topk_threshold_lr must lie in \(0, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused(activation, recipe, sizes, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainStep(*sizes, 8, activation=activation, recipe=Recipe(**recipe))


@pytest.mark.parametrize("case", [case for case in RECIPES if "reference" not in case])
def test_the_encoder_is_rounded_once_for_the_whole_run(case, monkeypatch):
    """Its shadow follows the optimizer; features, and with them weights, are what they are without it, to the bit."""
    if not multiplies_bf16():
        pytest.skip("this CPU has no product in bfloat16 that is worth a shadow")
    rounded, shadow_rows = [], screen_kernels.shadow_rows
    monkeypatch.setattr(screen_kernels, "shadow_rows", lambda W, *to: (rounded.append(len(W)), shadow_rows(W, *to))[1])
    steps, counts = [], []
    for kept in (True, False):
        step = a_step(case, 16, 16, 300, dtype=torch.float32, dead_feature_window=200)
        if not kept:
            encode = step.rule.encode
            monkeypatch.setattr(step.rule, "encode", lambda tc, x, at, screen, encode=encode: encode(tc, x, at))
        before = screen_counts()
        rounded.clear()
        for i in range(4):
            step(rows(70, 16, i, torch.float32), rows(70, 16, 9 + i, torch.float32))
        assert rounded.count(300) == 1 if kept else rounded.count(300) >= 5
        counts.append([after - at for at, after in zip(before, screen_counts(), strict=True)])
        steps.append(step)
    # Rows taken and rows not settled; few rows are screened in float32 where there is no shadow.
    assert counts[0][::2] == counts[1][::2]
    assert counts[0][0] > 0
    for a, b in zip(*(step.transcoder.parameters() for step in steps), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", RECIPES)
def test_auxk_is_on_where_it_always_was_and_elsewhere_if_asked_for(case):
    topk = isinstance(RECIPES[case][0], TopK | BatchTopK)
    found = {}
    for alpha in (None, 0.0, 1 / 32):
        step = a_step(case, auxk_alpha=alpha, dead_feature_window=60, d_sae=40)
        step(rows(20, 6), rows(20, 6, 1))
        step.tokens_since_fired[:5] = 60
        step(rows(20, 6, 2), rows(20, 6, 3))
        found[alpha] = float(step.stats.auxk), step.transcoder.W_enc.clone()
    default, same, other = found[None], *((found[1 / 32], found[0.0]) if topk else (found[0.0], found[1 / 32]))
    assert default[0] == same[0]
    assert torch.equal(default[1], same[1])
    assert not torch.equal(default[1], other[1])
    assert found[1 / 32][0] > 0 == found[0.0][0]


@pytest.mark.parametrize("case", ["relu", "jumprelu"])
def test_auxk_reaches_features_below_their_threshold(case):
    """Of which a ReLU would leave nothing."""
    gradients = []
    for alpha in (None, 0.5):
        step = a_step(case, auxk_alpha=alpha, auxk_k=3, dead_feature_window=60)
        step(rows(40, 6), rows(40, 6, 1))
        step.transcoder.b_enc[:5] = -20.0
        step.tokens_since_fired[:5] = 60
        seen = captured(step)
        step(rows(40, 6, 2), rows(40, 6, 3))
        gradients += seen
    for name in ("W_enc", "b_enc", "W_dec"):
        change = (gradients[1][name] - gradients[0][name]).reshape(13, -1).abs().amax(1)
        assert (change[:5] > 0).all(), name
        assert (change[5:] == 0).all(), name
