"""Training and evaluation on TransformerLens models, through the real lens."""

from __future__ import annotations

import pytest
import torch

from pullback.lens import as_lens
from pullback.training import TrainConfig, evaluate, train
from pullback.transcoders import ReLU, Transcoder, TranscoderSet, load_transcoders
from tests.models import native


@pytest.fixture(scope="module")
def model():
    return native(dtype=torch.float32, act_fn="relu", normalization_type="LNPre")


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 50, (64, 12), generator=torch.Generator().manual_seed(0))


def test_a_relu_mlp_is_its_own_transcoder(model, tokens):
    """METHODS 1.14-6: replacing every MLP by itself changes nothing."""
    sets = {}
    for layer, block in enumerate(model.blocks):
        weights = {name.replace("_original_component.", ""): w for name, w in block.mlp.named_parameters()}
        W_in, b_in = weights["fc_in.weight"], weights["fc_in.bias"]
        W_out, b_out = weights["fc_out.weight"], weights["fc_out.bias"]
        sets[layer] = Transcoder(W_in, b_in, W_out.T, b_out, activation=ReLU())
    report = evaluate(model, TranscoderSet(sets), tokens)
    assert report.ce_replaced == pytest.approx(report.ce_original, abs=1e-5)
    assert report.ce_recovered == pytest.approx(1.0, abs=1e-4)
    assert max(report.fvu.values()) < 1e-9


def test_trained_transcoders_explain_most_of_the_mlps(model, tokens):
    before = as_lens(model).logits(tokens)
    config = TrainConfig(d_sae=64, k=12, training_tokens=40_000, train_batch_size_tokens=256, lr=5e-3)
    sets = train(model, tokens, config, verbose=False)
    assert sets[2].reading == as_lens(model).reading(2)
    report = evaluate(model, sets, tokens)
    assert max(report.fvu.values()) < 0.5
    assert report.ce_recovered > 0.3
    assert torch.equal(as_lens(model).logits(tokens), before)


@pytest.mark.parametrize("hook", ["hook_mlp_out", "hook_attn_out"])
def test_autoencoders_are_trained_saved_loaded_and_evaluated(hook, model, tokens, tmp_path):
    config = TrainConfig(
        d_sae=48, k=8, hook_name=hook, hook_name_out=hook, training_tokens=12_000, train_batch_size_tokens=128
    )
    sets = train(model, tokens, config, verbose=False, output_path=tmp_path)
    loaded = load_transcoders(tmp_path)
    assert [(loaded.hook_in(i), loaded.hook_out(i)) for i in range(3)] == [(hook, hook)] * 3
    report = evaluate(model, loaded, tokens, per_layer=True)
    assert report == evaluate(model, sets, tokens, per_layer=True)
    assert max(report.fvu.values()) < 0.5
    assert max(arms.kl for arms in report.alone.values()) < report.kl < 1
    with pytest.raises(ValueError, match="skip_connection lets an autoencoder copy its input"):
        TrainConfig(hook_name=hook, hook_name_out=hook, skip_connection=True)
