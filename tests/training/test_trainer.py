"""Training all layers on a toy model, and on given activations."""

from __future__ import annotations

import pytest
import torch

from pullback.training import TrainConfig, TrainingDiverged, TrainStep, evaluate, train, train_on_activations
from pullback.training.mixing import Mixed
from pullback.transcoders import BatchTopK, JumpReLU, ReLU, TopK, load_transcoders

SMALL = {
    "d_sae": 48,
    "k": 8,
    "training_tokens": 4000,
    "train_batch_size_tokens": 100,
    "lr": 1e-2,
    "lr_warm_up_steps": 5,
}


def equal(a, b):
    return a.layers == b.layers and all(
        torch.equal(v, w) for l in a for v, w in zip(a[l].parameters(), b[l].parameters(), strict=True)
    )


def test_every_layer_learns_and_knows_where_it_comes_from(lens, tokens):
    sets = train(lens, tokens, TrainConfig(**SMALL, hook_name="ln2.hook_out"), verbose=False)
    assert sets.layers == [0, 1]
    assert [sets[l].reading for l in sets] == [lens.reading(0), lens.reading(1)]
    assert (sets.hook_in(0), sets.hook_out(1)) == ("ln2.hook_out", "hook_mlp_out")
    assert sets[0].activation == TopK(8)
    assert max(evaluate(lens, sets, tokens).fvu.values()) < 0.35


def test_one_forward_pass_serves_all_layers(lens, tokens):
    config = TrainConfig(**SMALL | {"training_tokens": 960}, store_batch_size_prompts=6, n_batches_in_buffer=1)
    train(lens, tokens, config, verbose=False)
    # 960 tokens trained on and at most a buffer of 200 left over, from passes of 60.
    assert 960 / 60 <= lens.forward_passes <= 1160 / 60
    assert all(ids.shape == (6, 10) for ids in lens.seen)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator(lens, tokens):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first, second = (train(lens, tokens, TrainConfig(**SMALL, seed=7), verbose=False) for _ in range(2))
    assert equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not equal(first, train(lens, tokens, TrainConfig(**SMALL, seed=8), verbose=False))


def test_layers_start_from_weights_of_their_own(lens, tokens):
    sets = train(lens, tokens, TrainConfig(**SMALL | {"training_tokens": 100, "lr": 1e-12}), verbose=False)
    assert (sets[0].W_enc - sets[1].W_enc).abs().max() > 0.1


def test_a_layer_does_not_depend_on_which_others_are_trained(lens, tokens):
    both = train(lens, tokens, TrainConfig(**SMALL), verbose=False)
    alone = train(lens, tokens, TrainConfig(**SMALL, layers=[1]), verbose=False)
    assert alone.layers == [1]
    assert torch.equal(both[1].W_dec, alone[1].W_dec)


def test_masked_tokens_and_bos_are_not_trained_on(lens, tokens, monkeypatch):
    used = []
    original = TrainStep.__call__
    monkeypatch.setattr(TrainStep, "__call__", lambda self, x, y: (used.append(x), original(self, x, y))[1])
    tokens = tokens.clone()
    tokens[:, 0] = 0
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, -1] = False
    lens.model.tokenizer.bos_token_id = 0
    train(lens, tokens, TrainConfig(**SMALL, layers=[0]), mask=mask, verbose=False)
    rows = {tuple(row) for row in torch.cat(used).tolist()}
    allowed = {tuple(row) for row in lens.W_E[tokens[:, 1:-1].unique()].tolist()}
    assert rows == allowed
    used.clear()
    train(lens, tokens, TrainConfig(**SMALL, layers=[0], exclude_bos=False), mask=mask, verbose=False)
    assert tuple(lens.W_E[0].tolist()) in {tuple(row) for row in torch.cat(used).tolist()}


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"architecture": "topk"}, TopK),
        ({"architecture": "batchtopk"}, BatchTopK),
        ({"architecture": "matryoshka_batchtopk", "matryoshka_widths": [8, 16]}, BatchTopK),
        ({"architecture": "standard", "l1_coefficient": 0.1, "l1_warm_up_steps": 5}, ReLU),
        ({"architecture": "jumprelu", "jumprelu_init_threshold": 0.2, "l0_warm_up_steps": 5}, JumpReLU),
    ],
    ids=lambda value: value["architecture"] if isinstance(value, dict) else "",
)
def test_every_architecture_trains_and_is_saved_as_learned(lens, tokens, tmp_path, settings, kind):
    config = TrainConfig(**SMALL, **settings, skip_connection=True)
    sets = train(lens, tokens, config, verbose=False, output_path=tmp_path / "tc")
    assert max(evaluate(lens, sets, tokens).fvu.values()) < 0.35
    loaded = load_transcoders(tmp_path / "tc")
    for layer in sets:
        assert isinstance(sets[layer].activation, kind)
        assert loaded[layer].activation == sets[layer].activation
        x = lens.W_E[tokens]
        assert torch.equal(loaded[layer](x), sets[layer](x))
    if kind is BatchTopK:
        assert sets[0].activation.threshold > 0


def test_an_iterator_ends_the_run_where_it_ends(lens, tokens, capsys):
    stream = iter([(tokens[:12], tokens[:12] > 0), (tokens[12:], tokens[12:] > 0)])
    sets = train(lens, stream, TrainConfig(**SMALL))
    assert sets.layers == [0, 1]
    out = capsys.readouterr()
    assert "ended after 240 of 4,000 tokens" in out.out
    assert "memory about" in out.out
    assert "fvu" in out.err
    assert "dead" in out.err


def test_the_set_is_saved_at_the_end(lens, tokens, tmp_path):
    sets = train(lens, tokens, TrainConfig(**SMALL), verbose=False, output_path=tmp_path / "tc")
    assert equal(load_transcoders(tmp_path / "tc"), sets)


def interrupted_after(n, tokens, error):
    for _ in range(n):
        yield tokens
    raise error


def test_an_interrupt_saves_what_exists_beside_what_was_there(lens, tokens, tmp_path):
    finished = train(lens, tokens, TrainConfig(**SMALL), verbose=False, output_path=tmp_path / "tc")
    source = interrupted_after(10, tokens, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(lens, source, TrainConfig(**SMALL | {"seed": 5}), verbose=False, output_path=tmp_path / "tc")
    loaded = load_transcoders(tmp_path / "tc.unfinished")
    assert loaded[1].b_dec.abs().max() > 0
    assert loaded[1].reading == lens.reading(1)
    assert torch.equal(load_transcoders(tmp_path / "tc")[1].W_enc, finished[1].W_enc)


def test_a_dict_is_no_config(lens, tokens):
    with pytest.raises(ValueError, match="config must be a TrainConfig, got dict"):
        train(lens, tokens, {"d_sae": 8})


def test_divergence_names_the_layer_and_saves_the_last_good_weights(lens, tokens, tmp_path):
    W_in, b_in, W_out, b_out = lens.mlps[1]

    def poisoned():
        for _ in range(10):
            yield tokens
        lens.mlps[1] = (W_in, b_in, W_out * torch.nan, b_out)
        while True:
            yield tokens

    with pytest.raises(TrainingDiverged, match="layer 1: .* targets at step .* NaN or infinite") as caught:
        train(lens, poisoned(), TrainConfig(**SMALL), verbose=False, output_path=tmp_path / "tc")
    assert equal(load_transcoders(tmp_path / "tc.unfinished"), caught.value.sets)


def test_what_cannot_be_trained_is_refused(lens, tokens):
    with pytest.raises(ValueError, match=r"layers must be among 0\.\.1 of this model, got \[0, 2\]"):
        train(lens, tokens, TrainConfig(**SMALL, layers=[0, 2]), verbose=False)
    with pytest.raises(ValueError, match="nothing to train on"):
        train(lens, iter([]), TrainConfig(**SMALL), verbose=False)


def test_given_activations_need_no_model(planted):
    _, batch = planted(0)
    x = batch(2000)
    config = TrainConfig(**SMALL | {"training_tokens": 20_000})
    transcoder = train_on_activations(x.view(20, 100, 32), 2 * x.view(20, 100, 32) + 1, config, verbose=False)
    y = 2 * x + 1
    assert (y - transcoder(x)).square().sum() / (y - y.mean(0)).square().sum() < 0.35
    again = train_on_activations(x, 2 * x + 1, config, verbose=False)
    assert torch.equal(transcoder.W_enc, again.W_enc)
    autoencoder = train_on_activations(x, config=config, verbose=False)
    assert autoencoder.d_out == 32


def test_pairs_of_activations_are_repeated_unless_they_are_an_iterator(planted):
    _, batch = planted(0)
    pairs = [(x, x[:, :5]) for x in (batch(50), batch(50))]
    config = TrainConfig(**SMALL | {"training_tokens": 500})
    long, short = (train_on_activations(p, config=config, verbose=False) for p in (pairs, iter(pairs)))
    assert (long.d_in, long.d_out) == (32, 5)
    assert not torch.equal(long.W_enc, short.W_enc)


def test_activations_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="same leading sizes"):
        train_on_activations(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="two tensors x and y, or one iterable"):
        train_on_activations([], torch.zeros(2, 4))
    for empty in ([], iter([])):
        with pytest.raises(ValueError, match="at least one pair"):
            train_on_activations(empty)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"d_sae": 8, "k": 9}, "k=9 exceeds d_sae=8"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, lazy_adam, got 'sgd'"),
        ({"d_sae": 8, "activation": TopK(9)}, "k=9 exceeds d_sae=8"),
        ({"architecture": "gated"}, "architecture must be one of topk, batchtopk, standard, jumprelu, matryoshka_"),
        ({"architecture": "jumprelu", "activation": JumpReLU(0.1)}, "say the same thing twice; give one of them"),
        ({"k": 4, "activation": TopK(8)}, r"k=4 and activation=TopK\(k=8, relu=True\) disagree; leave k out"),
        ({"architecture": "matryoshka_batchtopk"}, "needs matryoshka_widths"),
        ({"jumprelu_init_threshold": 0.0}, "jumprelu_init_threshold must be positive"),
        ({"l1_coefficient": -1}, "TrainConfig: l1_coefficient must not be negative"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"auxk_alpha": -1}, "auxk_alpha must not be negative"),
        ({"auxk_alpha": float("nan")}, "auxk_alpha must not be negative"),
        ({"adam_beta1": 1.5}, r"adam_beta1 must lie in \[0, 1\), got 1.5"),
        ({"adam_beta2": 1.0}, r"adam_beta2 must lie in \[0, 1\)"),
        ({"d_sae": 64.5}, "d_sae must be a whole number, got 64.5"),
        ({"train_batch_size_tokens": 32.0}, "train_batch_size_tokens must be a whole number"),
        ({"context_size": 0}, "context_size must be positive or None"),
        ({"dtype": "bfloat16"}, "dtype must be one of float32, float64"),
        ({"lr_scheduler_name": "step"}, "lr_scheduler_name must be one of linear, cosine, constant"),
        ({"lr_scheduler_name": "constant", "lr_end": 0.0}, "the rate never falls; for a fall at the end write"),
        ({"act_store_dtype": "float16"}, r"one of float32, bfloat16, or None \(float16 ends at 65504"),
        ({"dtype": "float64", "autocast_lm": True}, "round activations, and dtype='float64' asks for all"),
        ({"dtype": "float64", "act_store_dtype": "bfloat16"}, "round activations"),
        ({"normalize_activations": "layer_norm"}, "cannot be folded into weights"),
        ({"lr_end": 1.0}, "lr_end must lie between 0 and lr=0.002"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**settings)


def test_a_buffer_of_16_bit_rows_is_widened_for_the_step(lens, tokens):
    """As if the model had given rows of that precision."""
    stored = train(lens, tokens, TrainConfig(**SMALL, act_store_dtype="bfloat16"), verbose=False)
    plain = train(lens, tokens, TrainConfig(**SMALL), verbose=False)
    assert not equal(stored, plain)
    exact = lens.mlp_io
    lens.mlp_io = lambda *args: {l: tuple(t.bfloat16().float() for t in io) for l, io in exact(*args).items()}
    assert equal(stored, train(lens, tokens, TrainConfig(**SMALL), verbose=False))
    assert stored[0].W_enc.dtype == torch.float32


def test_the_buffer_holds_what_it_is_told(lens, tokens, monkeypatch):
    seen = set()
    original = Mixed.__next__
    monkeypatch.setattr(Mixed, "__next__", lambda self: [(t, seen.add(t.dtype))[0] for t in original(self)])
    train(lens, tokens, TrainConfig(**SMALL, act_store_dtype="bfloat16", autocast_lm=True), verbose=False)
    assert seen == {torch.bfloat16}
