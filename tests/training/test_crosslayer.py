"""Training of cross-layer transcoders: the sparse gradients of all layers are those of dense autograd of the joint
loss, and one layer alone learns what a transcoder does."""

from __future__ import annotations

import pytest
import torch

from pullback.ops import use_backend
from pullback.training import TrainConfig, TrainingDiverged
from pullback.training.run import PerLayerRun, new_step
from pullback.training.runs import new_run
from pullback.transcoders import BatchTopK, JumpReLU, ReLU, TopK
from tests.training.dense import Jump
from tests.training.test_rules import RECIPES, captured, rows

TYINGS = ["none", "per_source", "per_target"]
LAYERS, D_IN, D, F = [0, 2, 5], 6, 5, 13
CASES = [case for case in RECIPES if "matryoshka" not in case and "reference" not in case]
CPU = torch.device("cpu")


def a_run(case="topk", tying="none", layers=LAYERS, d_in=D_IN, **how):
    activation, recipe = RECIPES[case]
    settings = {
        "activation": activation,
        "d_sae": F,
        "dtype": "float64",
        "max_grad_norm": None,
        "auxk_k": 3,
        "auxk_alpha": 0.5,
        "dead_feature_window": 60,
        "lr_warm_up_steps": 0,
    }
    config = TrainConfig(**settings | recipe | {"cross_layer": True, "decoder_tying": tying} | how)
    return new_run(config, dict.fromkeys(layers, (d_in, D)), CPU, {})


def batch(seed, layers=LAYERS, d_in=D_IN, n=20):
    return [t for i in layers for t in (rows(n, d_in, seed + i), rows(n, D, seed + 50 + i) + i)]


def decoders(run, W, i):
    """W_dec[layer i -> m], for its targets m."""
    L = len(run.layers)
    return {
        "none": lambda: [W[i]["W_dec"][:, t] for t in range(L - i)],
        "per_source": lambda: [W[i]["W_dec"][:, 0]] * (L - i),
        "per_target": lambda: [W[m]["W_dec"][:, 0] for m in range(i, L)],
    }[run.config.decoder_tying]()


def dense_loss(run, given, seen):
    """The loss of the next step, and its gradients by layer and name: on dense matrices, in autograd.

    seen: all targets so far, of every layer.
    """
    every = list(run.learners.values())
    config, t, L = run.config, every[0].n_steps, len(every)
    W = [
        {
            n: w.detach().clone().requires_grad_()
            for n, w in [*one.features.named_parameters(), *one.rule.weights.items()]
        }
        for one in every
    ]
    xs, ys = given[::2], given[1::2]
    n = len(xs[0])
    made = [W[i]["b_dec"] + (xs[i] @ W[i]["W_skip"].T if "W_skip" in W[i] else 0) for i in range(L)]
    penalty, dead, h = 0.0, [one.tokens_since_fired >= one.dead_feature_window for one in every], []
    for i in range(L):
        h.append(xs[i] @ W[i]["W_enc"].T + W[i]["b_enc"])
        norms = torch.ones(F, dtype=torch.float64)
        if config.weight_by_decoder_norm:
            norms = torch.cat(decoders(run, W, i), 1).norm(dim=1)
        rule = config.trained_activation
        if isinstance(rule, TopK):
            z = TopK(config.k_at(t, rule.k), rule.relu).dense(h[i])
        elif isinstance(rule, BatchTopK):
            z = h[i] * (BatchTopK(config.k_at(t, rule.k)).dense(h[i].detach()) != 0)
        elif isinstance(rule, ReLU):
            z = h[i].relu()
            penalty = penalty + config.l1_at(t) * (z * norms).sum() / n
        else:
            assert isinstance(rule, JumpReLU)
            theta = W[i]["log_theta"].exp()
            z, active = Jump.apply(h[i], theta, config.jumprelu_bandwidth)
            if config.jumprelu_sparsity_loss_mode == "tanh":
                active = (config.jumprelu_tanh_scale * z * norms).tanh()
            lift = ((theta - h[i]).relu() * norms)[:, dead[i]].sum() / n
            penalty = penalty + config.l0_at(t) * active.sum() / n + config.pre_act_loss_coefficient * lift
        for m, W_dec in enumerate(decoders(run, W, i), i):
            made[m] = made[m] + z @ W_dec
    fvu = every[0].objective.loss == "fvu"
    scales = [n * ((y - y.mean(0)).square().sum(1).mean() if fvu else 1) for y in seen]
    total = penalty + sum((y - one).square().sum() / scale for y, one, scale in zip(ys, made, scales, strict=True))
    for i, one in enumerate(every):
        if dead[i].any() and one.auxk_alpha:
            k = min(one.auxk_k, int(dead[i].sum()))
            z = TopK(k, relu=one.rule.revives).dense(h[i][:, dead[i]])
            for m, W_dec in enumerate(decoders(run, W, i), i):
                left = (ys[m] - made[m]).detach() - z @ W_dec[dead[i]]
                total = total + one.auxk_alpha * (k / one.auxk_k) * left.square().sum() / scales[m]
    total.backward()
    return total.detach(), [{name: w.grad for name, w in own.items() if w.grad is not None} for own in W]


def agrees(run, given, seen):
    loss, wanted = dense_loss(run, given, seen)
    gradients = [captured(one) for one in run.learners.values()]
    run.step(given, 1e-2)
    ours = sum(own["losses/overall_loss"] for own in run.figures().values())
    assert ours == pytest.approx(float(loss), rel=1e-9)
    for i, own in enumerate(wanted):
        for name, gradient in own.items():
            found = gradients[i][-1][name].view_as(gradient)
            torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-11, msg=f"{i} {name}: {found - gradient}")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tying", TYINGS)
def test_loss_and_gradients_are_those_of_dense_autograd(case, tying):
    """Three steps into training, with dead features, skip paths and decoders of many norms."""
    run = a_run(case, tying, skip_connection=True)
    for i, one in enumerate(run.learners.values()):
        if not one.optimizer.decoder_norm:
            W_dec = one.features.W_dec
            W_dec.copy_(rows(F, W_dec[0].numel(), 90 + i).view_as(W_dec))
    batches = [batch(10 * i) for i in range(4)]
    for given in batches[:3]:
        run.step(given, 1e-2)
    for i, one in enumerate(run.learners.values()):
        one.tokens_since_fired[i : i + 4] = 60
    agrees(run, batches[3], [torch.cat([given[2 * i + 1] for given in batches]) for i in range(3)])


@pytest.mark.parametrize("tying", TYINGS)
def test_the_reference_backend_takes_the_same_steps(tying):
    runs = [a_run("batchtopk", tying), a_run("batchtopk", tying)]
    for given in (batch(0), batch(10)):
        runs[0].step(given, 1e-2)
        with use_backend("reference"):
            runs[1].step(given, 1e-2)
    for layer in LAYERS:
        for a, b in zip(*(run.dictionary()[layer].parameters() for run in runs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tying", TYINGS)
def test_one_layer_is_a_transcoder(case, tying):
    one = a_run(case, tying, layers=[3], d_in=D, skip_connection=True, max_grad_norm=0.5)
    config = TrainConfig(**vars(one.config) | {"cross_layer": False, "decoder_tying": "none"})
    step = new_step(config, D, D, CPU, seed=config.seed + 3, reading=None)
    other = PerLayerRun(config, {3: step})
    for i in range(12):
        for run in (one, other):
            run.step(batch(10 * i, [3], D), 1e-2)
    for a, b in zip(one.dictionary()[3].parameters(), other.dictionary()[3].parameters(), strict=True):
        torch.testing.assert_close(a.view_as(b), b, rtol=1e-7, atol=1e-9)
    assert one.figures()[3] == pytest.approx(other.figures()[3], rel=1e-7)


@pytest.mark.parametrize("tying", TYINGS)
def test_decoders_can_be_kept_at_unit_norm(tying):
    run = a_run("topk", tying, decoder_norm=True)
    for i in range(3):
        run.step(batch(i), 1e-2)
    for layer in LAYERS:
        norms = run.dictionary()[layer].W_dec.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("bad", [0, 3], ids=["input", "target"])
def test_a_layer_that_diverges_stops_all_before_any_has_moved(bad):
    run = a_run()
    run.step(batch(0), 1e-2)
    before = [w.clone() for layer in LAYERS for w in run.dictionary()[layer].parameters()]
    given = batch(10)
    given[bad][4, 2] = torch.nan
    with pytest.raises(TrainingDiverged, match=f"layer {LAYERS[bad // 2]}: 1 of 20 (inputs|targets) at step 1"):
        run.step(given, 1e-2)
    after = [w for layer in LAYERS for w in run.dictionary()[layer].parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    run.step(batch(10), 1e-2)


def test_a_failure_said_late_takes_every_layer_back():
    run, other = a_run(), a_run()
    for one in run.learners.values():
        one._late = True
    given = batch(10)
    given[3] = given[3] * torch.inf
    run.step(batch(0), 1e-2)
    run.step(given, 1e-2)
    with pytest.raises(TrainingDiverged, match="the loss of some layer or its gradient is not finite at step 1"):
        run.check()
    for one in (run, other):
        one.step(batch(20), 1e-2) if one is run else [one.step(batch(i), 1e-2) for i in (0, 20)]
    for layer in LAYERS:
        for a, b in zip(*(one.dictionary()[layer].parameters() for one in (run, other)), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"decoder_tying": "both"}, "decoder_tying must be one of none, per_source, per_target"),
        ({"decoder_tying": "per_source", "cross_layer": False}, "decoder_tying goes with cross_layer=True"),
        ({"matryoshka_widths": [4]}, "matryoshka_widths nest the reconstruction of one layer"),
        ({"normalize_activations": "expected_average_only_in"}, "normalize_activations goes with per-layer"),
        ({"micro_acc_steps": 2}, "micro_acc_steps goes with per-layer"),
        ({"loss": "reference"}, 'loss="reference" is that of one layer'),
        ({"hook_name": "hook_mlp_out"}, "an autoencoder writes what it reads"),
        ({"parallel": "layers"}, "parallel='layers' .* have common residuals .* choose parallel=\"features\""),
        ({"parallel": [2, 3]}, r"parallel=\[2, 3\] gives layers to processes"),
    ],
    ids=["tying", "tying alone", "matryoshka", "scale", "parts", "reference", "autoencoder", "layers", "mesh"],
)
def test_what_does_not_fit_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**{"cross_layer": True} | settings)


def test_layers_of_several_widths_are_refused():
    with pytest.raises(ValueError, match="all layers must have the same widths"):
        new_run(TrainConfig(cross_layer=True), {0: (4, 4), 1: (4, 5)}, CPU, {})
