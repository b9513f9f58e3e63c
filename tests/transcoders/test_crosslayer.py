"""A cross-layer transcoder is the sum its docstring says, layer by layer or step by step, and the same after a file."""

from __future__ import annotations

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pullback.transcoders import (
    BatchTopK,
    CrossLayerTranscoder,
    Dictionary,
    JumpReLU,
    ReLU,
    SourceLayer,
    TopK,
    TranscoderSet,
    load_transcoders,
)

LAYERS, D, F = [0, 1, 4], 11, 37
TYINGS = ["none", "per_source", "per_target"]


def draw(*shape, g, dtype):
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


@pytest.fixture
def make_clt(reading):
    """make_clt(tying, activation=..., skip=..., dtype=..., layers=..., n_features={layer: F})"""

    def build(
        tying="none", activation=None, *, skip=True, dtype=torch.float64, layers=LAYERS, n_features=None, **options
    ):
        g = torch.Generator().manual_seed(2)

        def source(i, layer):
            n = (n_features or {}).get(layer, F)
            t = len(layers) - i if tying == "none" else 1
            weights = (draw(n, D, g=g, dtype=dtype), draw(n, g=g, dtype=dtype), draw(n, t, D, g=g, dtype=dtype))
            W_skip = draw(D, D, g=g, dtype=dtype) if skip and layer != 1 else None
            return SourceLayer(
                *weights,
                draw(D, g=g, dtype=dtype),
                W_skip,
                activation=activation or TopK(5),
                reading=reading if layer == 1 else None,
                **options,
            )

        return CrossLayerTranscoder({layer: source(i, layer) for i, layer in enumerate(layers)}, tying)

    return build


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(5)
    return {layer: torch.randn(3, 7, D, generator=g, dtype=torch.float64) for layer in LAYERS}


def formula(clt, inputs):
    """y_dst = sum_{l <= dst} z_l W_dec[l -> dst] + b_dec[dst] + x W_skip^T, on dense matrices."""
    z = {layer: clt.encode(layer, x).to_dense() for layer, x in inputs.items()}
    out = {}
    for dst in clt.layers:
        y = clt[dst].b_dec.expand(21, D)
        for src in (layer for layer in clt.layers if layer <= dst):
            place = clt.layers[clt.layers.index(src) :].index(dst)
            W_dec = {
                "none": clt[src].W_dec[:, min(place, clt[src].W_dec.shape[1] - 1)],
                "per_source": clt[src].W_dec[:, 0],
                "per_target": clt[dst].W_dec[:, 0],
            }[clt.decoder_tying]
            y = y + z[src] @ W_dec
        if clt[dst].W_skip is not None:
            y = y + inputs[dst].reshape(21, D) @ clt[dst].W_skip.T
        out[dst] = y.view(3, 7, D)
    return out


@pytest.mark.parametrize("tying", TYINGS)
@pytest.mark.parametrize(
    "activation", [TopK(5), BatchTopK(4, 0.7), JumpReLU(torch.linspace(0, 2, F)), ReLU()], ids=lambda a: a.name
)
def test_it_is_the_sum_over_the_layers_below(make_clt, inputs, tying, activation):
    clt = make_clt(tying, activation)
    ours = clt(inputs)
    for layer, expected in formula(clt, inputs).items():
        torch.testing.assert_close(ours[layer], expected)


@pytest.mark.parametrize("tying", TYINGS)
def test_it_speaks_the_protocol_of_attribution(make_clt, inputs, tying):
    clt = make_clt(tying)
    assert isinstance(clt, Dictionary)
    assert (clt.layers, clt.d_model) == (LAYERS, D)
    assert [clt.targets(layer) for layer in LAYERS] == [[0, 1, 4], [1, 4], [4]]
    assert [clt.sources(layer) for layer in (0, 1, 2, 4)] == [[0], [0, 1], [], [0, 1, 4]]
    assert torch.equal(clt.decoder_rows(0, [3, 1], 4), clt.decoder(0, 4)[[3, 1]])
    holder = clt[4] if tying == "per_target" else clt[0]
    view = clt.decoder(0, 4)
    assert view.untyped_storage().data_ptr() == holder.W_dec.untyped_storage().data_ptr(), "a view costs nothing"
    assert view.shape == (F, D)
    assert clt.skip(1) is None
    assert torch.equal(clt.skip(4), clt[4].W_skip)
    for l, dst in ((1, 0), (0, 2)):
        with pytest.raises(ValueError, match=rf"layer {l} write to layers \[{l}, .*4\], not to layer {dst}"):
            clt.decoder(l, dst)
    with pytest.raises(KeyError, match="no transcoder for layer 2"):
        clt.targets(2)
    assert ("tied" in repr(clt)) == (tying != "none")
    assert "11 -> 37 -> " in repr(clt)


def test_a_reconstruction_needs_the_layers_below(make_clt, inputs):
    clt = make_clt()
    whole = clt(inputs)
    lower = clt({0: inputs[0], 1: inputs[1]})
    assert all(torch.equal(lower[layer], whole[layer]) for layer in (0, 1))
    with pytest.raises(ValueError, match=r"features of layers \[0\] write to layer 1 too"):
        clt({1: inputs[1]})


def test_one_layer_is_a_transcoder(make, x):
    tc = make(TopK(5), skip=True)
    weights = tc.W_enc, tc.b_enc, tc.W_dec[:, None], tc.b_dec, tc.W_skip
    clt = CrossLayerTranscoder({2: SourceLayer(*weights, activation=TopK(5))})
    assert torch.equal(clt({2: x})[2], TranscoderSet({2: tc})({2: x})[2])
    torch.testing.assert_close(clt({2: x})[2], tc(x))


@pytest.mark.parametrize("tying", TYINGS)
def test_to_converts_a_copy_and_keeps_the_ties(make_clt, inputs, tying):
    clt = make_clt(tying)
    narrow = clt.to(dtype=torch.float32)
    assert (narrow.decoder_tying, narrow[0].dtype, clt[0].dtype) == (tying, torch.float32, torch.float64)
    torch.testing.assert_close(narrow(inputs)[4].double(), clt(inputs)[4], rtol=1e-4, atol=1e-4)
    assert clt.to(dtype=torch.float64)[0] is clt[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"decoder_tying": "both"}, "must be one of none, per_source, per_target, got 'both'"),
        ({"decoder_tying": "per_source"}, r"layer 0 must be \[F, t, d_out\] with t=1 .*got \[37, 3, 11\]"),
        ({"sources": {}}, "at least one SourceLayer"),
        ({"sources": {0: 3}}, "layer 0 must be a SourceLayer, got int"),
    ],
    ids=["tying", "matrices", "none", "type"],
)
def test_what_does_not_fit_is_refused(make_clt, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        CrossLayerTranscoder(**{"sources": dict(make_clt()), "decoder_tying": "none"} | change)


def test_sizes_are_checked(make_clt):
    with pytest.raises(ValueError, match=r"with t=2 .*layers \[1, 4, 9\].*got \[37, 1, 11\]|with t=3"):
        CrossLayerTranscoder({9: make_clt()[4], 1: make_clt()[1], 4: make_clt()[4]})
    with pytest.raises(ValueError, match=r"as many features in every layer, got \{0: 37, 1: 20, 4: 37\}"):
        make_clt("per_target", n_features={1: 20})
    make_clt("per_source", n_features={1: 20})
    with pytest.raises(ValueError, match=r"SourceLayer: W_enc and W_dec must be \[F, d_in\] and \[F, t, d_out\]"):
        SourceLayer(torch.zeros(5, 3), torch.zeros(5), torch.zeros(5, 3), torch.zeros(3), activation=ReLU())


@pytest.mark.parametrize("tying", TYINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_forward_is_bitwise_equal_after_a_round_trip(make_clt, inputs, tmp_path, tying, dtype, reading):
    clt = make_clt(tying, JumpReLU(torch.linspace(0, 2, F)), dtype=dtype, hook_in="ln2.hook_normalized")
    clt.save(tmp_path / "clt")
    loaded = load_transcoders(tmp_path / "clt")
    assert isinstance(loaded, CrossLayerTranscoder)
    assert (loaded.decoder_tying, loaded.layers, loaded.hook_in(1)) == (tying, LAYERS, "ln2.hook_normalized")
    assert (loaded[0].reading, loaded[1].reading) == (None, reading)
    for layer, y in clt.to(dtype=loaded[0].dtype)(inputs).items():
        assert torch.equal(loaded(inputs)[layer], y)


def test_layers_may_differ_in_rule_and_size(make_clt, inputs, tmp_path):
    clt = make_clt(n_features={1: 20})
    clt[1].activation = BatchTopK(3, 0.5)
    clt.save(tmp_path)
    loaded = load_transcoders(tmp_path)
    assert [loaded[layer].activation for layer in LAYERS] == [TopK(5), BatchTopK(3, 0.5), TopK(5)]
    assert torch.equal(loaded(inputs)[4], clt(inputs)[4])


def test_a_new_save_takes_the_place_of_the_other_kind(make_clt, make, inputs, x, tmp_path):
    sets = TranscoderSet({layer: make(TopK(5)) for layer in range(6)})
    clt = make_clt()
    sets.save(tmp_path / "out")
    clt.save(tmp_path / "out")
    assert torch.equal(load_transcoders(tmp_path / "out")(inputs)[1], clt(inputs)[1])
    sets.save(tmp_path / "out")
    assert torch.equal(load_transcoders(tmp_path / "out")[3](x), sets[3](x))


def rewrite(file, **changes):
    save_file({name: t for name, t in (load_file(file) | changes).items() if t is not None}, file)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "W_dec_4.safetensors").unlink(), "W_dec_4.safetensors is missing"),
        (lambda folder: (folder / "W_enc_4.safetensors").unlink(), r"lists layers .*W_enc_4.safetensors is missing"),
        (lambda f: rewrite(f / "W_enc_1.safetensors", W_enc_1=torch.zeros(D, F)), r"W_enc must be .*\(transposed\?\)"),
        (lambda f: rewrite(f / "W_dec_1.safetensors", W_dec_1=torch.zeros(F, 4, D)), "W_dec of layer 1 must be"),
        (lambda f: rewrite(f / "W_enc_1.safetensors", b_dec_1=None), r"tensors \['b_dec'\] are missing"),
        (
            lambda f: (f / "config.yaml").write_text((f / "config.yaml").read_text().replace("cross_layer_", "c")),
            "model_kind is 'ctranscoder'.*cross-layer",
        ),
    ],
    ids=["decoder", "encoder", "turned", "targets", "bias", "kind"],
)
def test_damaged_files_are_refused(make_clt, tmp_path, damage, sentence):
    make_clt().save(tmp_path)
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        load_transcoders(tmp_path)


def test_one_layer_of_it_is_refused(make_clt, tmp_path):
    make_clt().save(tmp_path)
    for arguments in ({"path": tmp_path, "layer": 1}, {"path": tmp_path / "W_enc_1.safetensors"}):
        with pytest.raises(ValueError, match="it is loaded whole"):
            load_transcoders(**arguments)


@pytest.mark.parametrize("tying", TYINGS)
def test_what_circuit_tracer_reads(make_clt, inputs, tmp_path, tying):
    """Every pair of layers has its decoder, and every layer its thresholds."""
    inputs = dict(enumerate(inputs.values()))
    clt = make_clt(tying, ReLU(), layers=[0, 1, 2], skip=False)
    clt[1].activation = JumpReLU(0.5)
    clt.save(tmp_path / "ct", "circuit-tracer", scan="owner/name")
    assert yaml.safe_load((tmp_path / "ct" / "config.yaml").read_text()) == {
        "model_name": "unknown",
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "scan": "owner/name",
    }
    shapes = {
        name: list(t.shape) for file in sorted((tmp_path / "ct").glob("W_*_1.*")) for name, t in load_file(file).items()
    }
    assert shapes == {"W_dec_1": [F, 2, D], "W_enc_1": [F, D], "b_enc_1": [F], "b_dec_1": [D], "threshold_1": [F]}
    loaded = load_transcoders(tmp_path / "ct")
    for layer, y in clt(inputs).items():
        torch.testing.assert_close(loaded(inputs)[layer], y)


def test_a_skip_path_lies_as_circuit_tracer_applies_it(make_clt, inputs, tmp_path):
    clt = make_clt(activation=ReLU(), layers=[0])
    clt.save(tmp_path, "circuit-tracer")
    assert torch.equal(load_file(tmp_path / "W_enc_0.safetensors")["W_skip_0"], clt[0].W_skip.T)
    torch.testing.assert_close(load_transcoders(tmp_path)({0: inputs[0]})[0], clt({0: inputs[0]})[0])


@pytest.mark.parametrize(
    ("options", "format", "sentence"),
    [
        ({}, "saelens", "saelens has no layout for features that write to several layers.*pullback or circuit-tracer"),
        ({}, "sparsify", "sparsify has no layout"),
        ({"activation": ReLU()}, "circuit-tracer", r"every layer from 0 on, this set has \[0, 1, 4\]"),
        ({"layers": [0, 1], "skip": False}, "circuit-tracer", "pass calibrate="),
        ({"layers": [0, 1], "activation": ReLU()}, "circuit-tracer", r"W_skip in every layer or in none.*\[0\]"),
        ({"layers": [0, 1], "activation": ReLU(), "n_features": {1: 20}}, "circuit-tracer", "one number of features"),
    ],
    ids=["saelens", "sparsify", "layers", "topk", "skip", "sizes"],
)
def test_what_a_layout_cannot_hold_is_not_written(make_clt, tmp_path, options, format, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_clt(**options).save(tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_topk_is_written_with_thresholds_on_request(make_clt, inputs, tmp_path):
    clt = make_clt(layers=[0, 1], skip=False)
    clt.save(tmp_path, "circuit-tracer", calibrate={0: inputs[0], 1: inputs[1]})
    loaded = load_transcoders(tmp_path)
    for layer in (0, 1):
        assert isinstance(loaded[layer].activation, JumpReLU)
        assert loaded.encode(layer, inputs[layer]).nnz == clt.encode(layer, inputs[layer]).nnz
