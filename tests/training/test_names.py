"""Settings under the names of sparsify and SAELens: each is translated or refused with a sentence."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest

from pullback.commands import train_options
from pullback.training import TrainConfig, train
from pullback.training.names import saelens, sparsify


def noted(make, **options):
    """The configuration, and the notes of its one warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = make(**options)
    assert len(caught) <= 1
    return config, "".join(str(warning.message) for warning in caught)


@dataclass
class SparseCoderConfig:
    activation: str = "topk"
    expansion_factor: int = 32
    normalize_decoder: bool = True
    num_latents: int = 0
    k: int = 32
    multi_topk: bool = False
    skip_connection: bool = False
    transcode: bool = False


def test_a_transcoder_run_of_sparsify():
    config, notes = noted(
        TrainConfig.from_sparsify,
        sae=SparseCoderConfig(num_latents=4096, k=64, transcode=True, skip_connection=True),
        hookpoints=["model.layers.3.mlp", "model.layers.5.mlp"],
        batch_size=16,
        ctx_len=128,
        grad_acc_steps=8,
        micro_acc_steps=2,
        auxk_alpha=1 / 32,
        dead_feature_threshold=500_000,
        exclude_tokens=[0, 2],
        init_seeds=[7],
        max_examples=1000,
        save_every=10,
        log_to_wandb=True,
    )
    wanted = TrainConfig(
        d_sae=4096,
        k=64,
        layers=[3, 5],
        hook_name="mlp.hook_in",
        hook_name_out="hook_mlp_out",
        skip_connection=True,
        train_batch_size_tokens=2048,
        store_batch_size_prompts=16,
        context_size=128,
        grad_acc_steps=8,
        micro_acc_steps=2,
        lr=4e-4,
        lr_warm_up_steps=1000,
        adam_beta2=0.999,
        auxk_alpha=1 / 32,
        dead_feature_window=500_000,
        exclude_special_tokens=[0, 2],
        seed=7,
        training_tokens=128_000,
    )
    assert config.to_dict() == wanted.to_dict()
    for said in (
        "batch_size counts sequences: 16 of 128 tokens make train_batch_size_tokens=2048",
        "save_every is left out: checkpoint_every_tokens of train",
        "lr: sparsify's rule for Adam, 2e-4 / sqrt(d_sae / 2^14), makes 0.0004",
    ):
        assert said in notes


def test_an_autoencoder_run_of_sparsify_and_its_defaults():
    config, _ = noted(TrainConfig.from_sparsify, hookpoints=["h.*.attn"], d_in=64, lr=1e-3)
    assert (config.hook_name, config.hook_name_out, config.layers) == ("hook_attn_out", "hook_attn_out", None)
    assert (config.d_sae, config.auxk_k, config.auxk_alpha, config.decoder_norm) == (2048, 32, 0.0, True)
    assert (config.train_batch_size_tokens, config.dead_feature_window, config.lr) == (65_536, 10_000_000, 1e-3)
    config, notes = noted(TrainConfig.from_sparsify, d_sae=512, context_size=32, train_batch_size_tokens=256, k=4)
    assert (config.d_sae, config.context_size, config.train_batch_size_tokens) == (512, 32, 256)
    assert "batch_size" not in notes


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"activation": "groupmax"}, "groupmax takes the largest of k groups"),
        ({"multi_topk": True}, "matryoshka_widths"),
        ({"loss_fn": "kl"}, "only the error of activations is trained"),
        ({"optimizer": "signum"}, "only Adam is here"),
        ({"finetune": "x"}, "training starts from new weights"),
        ({"k_decay_steps": 5}, "write k_start=10"),
        ({"init_seeds": [0, 1]}, r"configs=\[\.\.\.\], one for each seed"),
        ({"hookpoints": ["layers.3"]}, "name MLPs or attentions"),
        ({"hookpoints": ["h.1.mlp", "h.1.attn"]}, "of one kind"),
        ({"hookpoints": ["h.1.attn"], "transcode": True}, "transcoders stand in for MLPs"),
        ({"learning_rate": 1}, "neither sparsify nor TrainConfig has a setting 'learning_rate'"),
        ({"sae": 3}, "must be a mapping or a dataclass"),
    ],
)
def test_what_sparsify_has_and_this_has_not(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        noted(TrainConfig.from_sparsify, **options)


def test_a_run_of_saelens():
    config, notes = noted(
        TrainConfig.from_saelens,
        model_name="gpt2",
        hook_name="blocks.3.mlp.hook_in",
        hook_name_out="blocks.3.hook_mlp_out",
        training_tokens=400_000,
        train_batch_size_tokens=200,
        lr_scheduler_name="constant",
        lr_decay_steps=50,
        dead_feature_window=300,
        autocast_lm=True,
        prefetch_llm_batches=True,
        sae={
            "architecture": "jumprelu",
            "d_in": 64,
            "d_sae": 512,
            "l0_coefficient": 3.0,
            "normalize_activations": "expected_average_only_in",
            "pre_act_loss_coefficient": None,
            "decoder_init_norm": 0.1,
        },
    )
    wanted = TrainConfig(
        architecture="jumprelu",
        d_sae=512,
        layers=[3],
        training_tokens=400_000,
        train_batch_size_tokens=200,
        context_size=128,
        n_batches_in_buffer=20,
        lr=3e-4,
        lr_scheduler_name="linear",
        lr_warm_up_steps=0,
        lr_decay_steps=50,
        adam_beta2=0.999,
        dead_feature_window=60_000,
        l0_coefficient=3.0,
        loss="paper",
        normalize_activations="expected_average_only_in",
        autocast_lm=True,
        prefetch=1,
        seed=42,
    )
    assert config.to_dict() == wanted.to_dict()
    for said in (
        "dead_feature_window=300 counts training steps there and tokens here: 60,000",
        "'linear' here, falling over the last 50",
        "model_name is left out: pass the model",
    ):
        assert said in notes


def test_a_topk_autoencoder_of_saelens():
    sae = {"architecture": "topk", "k": 8.0, "d_in": 64, "d_sae": 128, "aux_loss_coefficient": 1.0}
    sae["rescale_acts_by_decoder_norm"] = True
    options = {"hook_name": "blocks.0.hook_mlp_out", "sae": sae, "lr_scheduler_name": "cosineannealing", "lr_end": 1e-5}
    config, notes = noted(TrainConfig.from_saelens, **options)
    assert (config.hook_name, config.hook_name_out, config.autoencodes) == ("hook_mlp_out", "hook_mlp_out", True)
    assert (config.k, config.auxk_alpha, config.auxk_k, config.decoder_norm) == (8, 1.0, 32, True)
    assert (config.lr_scheduler_name, config.lr_end, config.lr_decay_steps) == ("cosine", 1e-5, None)
    assert "rows of norm 1 need no rescaling" in notes


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sae": {"apply_b_dec_to_input": True}}, "b_enc takes its place"),
        ({"autocast": True}, "certified to find the exact features"),
        ({"lr_scheduler_name": "cosineannealingwarmrestarts"}, "there are no restarts"),
        ({"lr_scheduler_name": "cosineannealing", "lr_decay_steps": 9}, "the cosine ends the run, at lr_end"),
        ({"normalize_activations": "layer_norm"}, "cannot be folded into weights"),
        ({"k": 2.5}, "a whole number of features"),
        ({"target_l0": 30.0}, "sweep l0_coefficient"),
        ({"seqpos_slice": (1,)}, "mask="),
        ({"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.2.hook_mlp_out"}, "in one layer"),
        ({"dtype": "bfloat16"}, "16-bit weights do not train well"),
    ],
)
def test_what_saelens_has_and_this_has_not(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        noted(TrainConfig.from_saelens, **options)


@pytest.mark.parametrize("names", [sparsify, saelens])
def test_tables_name_a_setting_once(names):
    assert not set(names.REFUSED) & set(names.ELSEWHERE)


def test_the_command_line_knows_names_that_are_translated():
    known = {*sparsify.REFUSED, *sparsify.RENAMED, *sparsify.DEFAULTS, "num_latents", "hookpoints"}
    assert set(train_options.OF_SPARSIFY) <= known


def test_the_width_of_a_dictionary_may_be_a_multiple_of_its_inputs(lens, tokens):
    config = TrainConfig(expansion_factor=3, k=32, training_tokens=100, train_batch_size_tokens=50)
    assert train(lens, tokens, config, verbose=False)[0].d_sae == 36
    with pytest.raises(ValueError, match="goes without d_sae"):
        TrainConfig(expansion_factor=3, d_sae=64)
    with pytest.raises(ValueError, match="k=40 exceeds d_sae=36"):
        train(lens, tokens, TrainConfig(expansion_factor=3, k=40), verbose=False)
