"""Sweeps: what the grid is, that arms are what they would be alone, that nothing finished is done again, and the
comparison at equal L0."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pullback.training import TrainConfig, cache_activations, evaluate, sweep, train_on_cache
from pullback.training.sweep import grid, matched, run
from pullback.training.sweep.published import published_curves
from pullback.transcoders import JumpReLU, load_transcoders
from pullback.viz import pareto

SMALL = TrainConfig(d_sae=16, k=1, training_tokens=60, train_batch_size_tokens=20, lr=1e-2)


def arms_of(**given):
    settings = {"config": SMALL, "kinds": ("transcoder", "sae"), "architectures": None, "seeds": (0, 1)} | given
    values = settings.pop("values", {"k": (2, 4)})
    return grid.grid(values=values, **settings)


def test_the_grid_has_every_arm_once_and_knows_what_sets_its_sparsity():
    arms = arms_of(architectures=("topk", "jumprelu"), values={"k": (2, 4, 4), "l0_coefficient": (1e-3,)})
    assert [arm.name for arm in arms[:6]] == [
        "transcoder-topk-k2-seed0",
        "sae-topk-k2-seed0",
        "transcoder-topk-k4-seed0",
        "sae-topk-k4-seed0",
        "transcoder-jumprelu-l0_coefficient0.001-seed0",
        "sae-jumprelu-l0_coefficient0.001-seed0",
    ]
    assert len({arm.name for arm in arms}) == len(arms) == 12
    sae = arms[1].config
    assert (sae.hook_name, sae.hook_name_out, sae.k, sae.seed) == ("hook_mlp_out", "hook_mlp_out", 2, 0)
    assert isinstance(arms[4].config.trained_activation, JumpReLU)
    with_skip = arms_of(config=replace(SMALL, skip_connection=True))
    assert [arm.config.skip_connection for arm in with_skip[:2]] == [True, False]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kinds": ("crosscoder",)}, "kinds are transcoder, sae, got 'crosscoder'"),
        ({"kinds": ()}, "at least one kind and one seed"),
        ({"architectures": ("standard",)}, "standard needs values of l1_coefficient"),
        ({"architectures": ("gated",)}, "architectures are topk"),
        ({"config": replace(SMALL, hook_name="hook_mlp_out")}, "which makes autoencoders"),
        ({"config": replace(SMALL, activation=JumpReLU(0.1))}, "name the rule by architectures"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        arms_of(**given)


@pytest.fixture
def swept(lens, tokens, tmp_path):
    """sweep(...) of a small grid into one folder, on the toy model."""

    def go(**given):
        settings = {"k": (2, 6), "seeds": (0, 1), "evaluation": {"all": tokens[:12], "few": tokens[12:]}} | given
        return sweep(lens, tokens, tmp_path / "out", SMALL, at_once=3, verbose=False, **settings)

    return go


def test_an_arm_is_what_it_would_be_alone(swept, lens, tokens, tmp_path):
    content = swept()
    assert content == json.loads((tmp_path / "out/sweep.json").read_text())
    assert len(content["arms"]) == 8
    for name in ("sae-topk-k6-seed1", "transcoder-topk-k2-seed0"):
        kind, _, k, seed = name.split("-")
        config = replace(SMALL, architecture="topk", k=int(k[1:]), seed=int(seed[4:]))
        config = replace(config, hook_name="hook_mlp_out") if kind == "sae" else config
        alone = train_on_cache(tmp_path / "out/cache", config, verbose=False)
        saved = load_transcoders(tmp_path / "out/sets" / name)
        for layer, tc in alone.items():
            assert torch.equal(saved[layer].W_enc, tc.W_enc)
            assert torch.equal(saved[layer].W_dec, tc.W_dec)
        report = evaluate(lens, alone, tokens[12:]).to_dict()
        assert content["arms"][name]["figures"]["few"] == json.loads(json.dumps(report))
        assert content["arms"][name]["settings"]["hook_name"] == config.hook_name
    assert set(content["versions"]) >= {"pullback", "torch"}
    assert not (tmp_path / "out/checkpoints").exists()


def test_an_autoencoder_reads_the_targets_of_a_cache_made_for_transcoders(lens, tokens, tmp_path):
    hooks = {"hook_name": "hook_mlp_out", "hook_name_out": "hook_mlp_out"}
    config = replace(SMALL, **hooks)
    caches = [
        cache_activations(lens, tokens, tmp_path / name, verbose=False, **given)
        for name, given in (("pairs", {}), ("outputs", hooks))
    ]
    here, there = (train_on_cache(cache, config, verbose=False) for cache in caches)
    for layer, tc in here.items():
        assert torch.equal(tc.W_enc, there[layer].W_enc)
        assert torch.equal(tc.W_dec, there[layer].W_dec)
    with pytest.raises(ValueError, match="hook_name='hook_mlp_out', and the config says 'mlp.hook_in'"):
        train_on_cache(caches[1], SMALL, verbose=False)


def test_finished_arms_stay_and_a_stopped_sweep_goes_on(swept, monkeypatch, tmp_path):
    whole = swept()
    whole_bytes = (tmp_path / "out/sweep.json").read_bytes()
    trained = []
    train = run.train_on_cache

    def spy(cache, *, configs, **rest):
        trained.append([(one.k, one.seed) for one in configs])
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(cache, configs=configs, **rest)

    monkeypatch.setattr(run, "train_on_cache", spy)
    assert swept() == whole
    assert trained == []
    assert (tmp_path / "out/sweep.json").read_bytes() == whole_bytes
    with pytest.raises(KeyboardInterrupt):
        swept(k=(2, 6, 8), seeds=(0, 1, 2))
    done = json.loads((tmp_path / "out/sweep.json").read_text())
    assert set(done["arms"]) == {*whole["arms"], "transcoder-topk-k8-seed0", "sae-topk-k8-seed0"}
    more = swept(k=(2, 6, 8), seeds=(0, 1, 2))
    assert trained[2][0] == (8, 1)
    assert len(more["arms"]) == 18
    assert {name: more["arms"][name] for name in whole["arms"]} == whole["arms"]


def test_another_sweep_in_the_folder_is_refused(swept, tokens):
    swept(k=(2,), seeds=(0,))
    with pytest.raises(ValueError, match="of a sweep with another evaluation"):
        swept(k=(2,), seeds=(0,), evaluation=tokens)
    SMALL.lr *= 2
    try:
        with pytest.raises(ValueError, match="has transcoder-topk-k2-seed0 with another lr"):
            swept(k=(2,), seeds=(0,))
    finally:
        SMALL.lr /= 2


def test_an_evaluation_without_a_prediction_is_refused_before_anything_is_trained(swept, tmp_path):
    with pytest.raises(ValueError, match="'short' has no two tokens in a row"):
        swept(evaluation={"short": [torch.tensor([[3]])]})
    assert not (tmp_path / "out/cache").exists()


# ---- equal L0 -------------------------------------------------------------------------------------------------------


def made_up(slope_by_kind, seeds=(0, 1, 2), l0s=(4.0, 8.0, 16.0)):
    """Arms whose figures are a slope times log2 of their L0, and 0.01 more with every seed."""
    arms = {}
    for kind, slope in slope_by_kind.items():
        for seed in seeds:
            for l0 in l0s:
                x = torch.tensor(l0).log2().item()
                figures = dict.fromkeys(matched.FIGURES, slope * x + 0.01 * seed * (kind == "sae"))
                figures |= {"l0": {"0": l0 - 1, "1": l0 + 1}, "ce_original": 1.0, "ce_mean_ablated": 3.0}
                figures |= {"ce_zero_ablated": 3.2, "dead": {"0": 0.0}, "ce_recovered_from_zero": 0.5}
                arm = {"kind": kind, "architecture": "topk", "seed": seed, "value": l0, "setting": "k"}
                arms[f"{kind}{l0}{seed}"] = arm | {"figures": {"tokens": figures}}
    return arms


def test_figures_are_interpolated_in_log_l0():
    curve = [(4.0, 0.2), (16.0, 0.4)]
    assert matched.interpolated(curve, 8.0) == pytest.approx(0.3)
    assert matched.interpolated(curve, 4.0) == 0.2
    assert matched.interpolated(curve, 16.1) == 0.4, "an L0 a little beyond the end is that of the end"
    assert matched.interpolated(curve, 17.0) is None
    assert matched.interpolated(curve, 3.0) is None


def test_the_comparison_is_the_difference_at_equal_l0_over_seeds():
    arms = made_up({"transcoder": 0.2}) | made_up({"sae": 0.1}, l0s=(6.0, 12.0, 24.0))
    found = matched.matched(arms)["tokens"]["topk"]["ce_recovered"]
    assert found["l0"] == pytest.approx([8.0, 16.0]), "at 4 there is no autoencoder to compare with"
    assert found["transcoder"] == pytest.approx([0.6, 0.8])
    assert found["sae"] == pytest.approx([0.31, 0.41])
    assert found["difference"] == pytest.approx([0.29, 0.39])
    assert found["std"] == pytest.approx([0.01, 0.01])
    assert found["by_seed"] == pytest.approx({0: 0.35, 1: 0.34, 2: 0.33})
    assert found["overall"] == pytest.approx({"mean": 0.34, "std": 0.01})


@pytest.mark.parametrize("kind", ["transcoder", "sae"])
def test_an_arm_without_any_active_feature_is_left_out(kind):
    arms = made_up({"transcoder": 0.2, "sae": 0.1})
    arms[f"{kind}4.01"]["figures"]["tokens"]["l0"] = {"0": 0.0, "1": 0.0}
    found = matched.matched(arms)["tokens"]["topk"]["kl"]
    assert found["difference"] == pytest.approx([0.1 * torch.tensor(l0).log2().item() - 0.01 for l0 in found["l0"]])


def test_one_kind_or_one_seed_alone():
    assert matched.matched(made_up({"transcoder": 0.2})) == {}
    single = matched.matched(made_up({"transcoder": 0.2, "sae": 0.1}, seeds=(5,)))["tokens"]["topk"]["kl"]
    assert single["overall"]["std"] is None
    holes = made_up({"transcoder": 0.2, "sae": 0.1})
    holes["sae4.00"]["figures"]["tokens"]["kl"] = None
    assert matched.matched(holes)["tokens"]["topk"]["kl"]["l0"] == [8.0, 16.0]


def test_the_plot_needs_matplotlib_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(pareto, "can_draw", lambda: False)
    with pytest.raises(ValueError, match="pip install"):
        pareto.draw({"arms": made_up({"sae": 0.1})}, tmp_path / "sweep.png")


@pytest.mark.parametrize("name", ["sweep.png", "sweep.svg"])
def test_the_plot_has_both_kinds_and_the_ablation(name, tmp_path):
    pytest.importorskip("matplotlib")
    content = {"arms": made_up({"transcoder": 0.2, "sae": 0.1})}
    for path in (tmp_path / name, tmp_path / f"again-{name}"):
        pareto.draw(content, path)
    if name.endswith("svg"):
        drawn = (tmp_path / name).read_text()
        assert all(
            f"<!-- {word} -->" in drawn
            for word in ("transcoder topk", "sae topk", "outputs at their means", "outputs at zero")
        )
        for arm in content["arms"].values():
            arm["figures"]["tokens"]["ce_mean_ablated"] = 80.0
        pareto.draw(content, tmp_path / name)
        assert "<!-- outputs at their means: 80.000, above -->" in (tmp_path / name).read_text()
    else:
        assert (tmp_path / name).read_bytes() == (tmp_path / f"again-{name}").read_bytes()
    with pytest.raises(ValueError, match="no finished arm"):
        pareto.draw({"arms": {}}, tmp_path / name)


def test_published_curves_are_those_of_the_model_and_layer(tmp_path):
    def of(name, layers=("15",)):
        return published_curves({"model": {layer: {"model_name": name} for layer in layers}})

    found = of("EleutherAI/pythia-410m")
    assert [curve["kind"] for curve in found] == ["transcoder", "sae"]
    assert [len(curve["points"]) for curve in found] == [5, 4]
    assert of("pythia-410m") == found
    assert of("pythia-410m", ("14",)) == of("pythia-410m", ("14", "15")) == of("pythia-70m") == []
    for curve in found:  # the sparser, the worse, and the transcoder never is
        by_l0 = sorted((point["l0"], point["ce"]) for point in curve["points"])
        assert [ce for _, ce in by_l0] == sorted((ce for _, ce in by_l0), reverse=True)
    pytest.importorskip("matplotlib")
    pareto.draw({"arms": made_up({"sae": 0.1})}, tmp_path / "sweep.svg", found)
    assert "<!-- transcoder, Dunefsky et al. 2024 -->" in (tmp_path / "sweep.svg").read_text()


def test_both_kinds_leave_bos_alone_and_have_the_same_bounds(swept, lens, tokens, tmp_path, monkeypatch):
    heads = tokens[:12].clone()
    heads[:, 0] = 0
    monkeypatch.setattr(lens.model.tokenizer, "bos_token_id", 0)
    arms = swept(seeds=(0,), evaluation=heads)["arms"].values()
    figures = [arm["figures"]["tokens"] for arm in arms]
    assert {arm["kind"] for arm in arms} == {"transcoder", "sae"}
    assert {own["n_tokens"] for own in figures} == {heads[:, 1:].numel()}
    for bound in ("ce_original", "ce_mean_ablated", "ce_zero_ablated"):
        assert len({round(own[bound], 9) for own in figures}) == 1, bound
    saved = load_transcoders(tmp_path / "out/sets/sae-topk-k2-seed0")
    assert figures[0]["ce_original"] == pytest.approx(evaluate(lens, saved, heads[:, 1:]).ce_original, rel=1e-5)
    page = (tmp_path / "out/sweep.html").read_text()
    assert all(word in page for word in ("outputs at zero", "outputs at their means", "ce_recovered_from_zero"))
