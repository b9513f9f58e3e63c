"""The native files: what is saved is what is loaded, a failed save leaves the old set, a bad file is refused with a
sentence."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pullback._util.atomic import previous_directory
from pullback.transcoders import BatchTopK, JumpReLU, ReLU, TopK, Transcoder, TranscoderSet, load_transcoders
from pullback.transcoders.formats import files, native

FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def saved(make, tmp_path):
    """Directory of a saved two-layer set, and the set."""
    sets = TranscoderSet({0: make(TopK(5), seed=1), 1: make(TopK(5), seed=2)})
    sets.save(tmp_path / "tc")
    return tmp_path / "tc", sets


def rewrite(file, **changes):
    """Change tensors of a layer file; None removes one."""
    tensors = {name: tensor.clone() for name, tensor in (load_file(file) | changes).items() if tensor is not None}
    save_file(tensors, file)


def reconfigure(directory, **changes):
    file = directory / "config.yaml"
    config = yaml.safe_load(file.read_text()) | changes
    file.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))


def same(loaded, sets, x):
    return loaded.layers == sets.layers and all(torch.equal(loaded[l](x), sets[l](x)) for l in sets)


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forward_is_bitwise_equal_after_a_round_trip(make, activation, x, tmp_path, dtype, skip, reading):
    sets = TranscoderSet(
        {0: make(activation, skip=skip, dtype=dtype), 4: make(activation, dtype=dtype, reading=reading)}
    )
    sets.save(tmp_path / "tc")
    loaded = load_transcoders(tmp_path / "tc")
    assert same(loaded, sets, x)
    assert loaded[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert load_transcoders(tmp_path / "tc", dtype=dtype)[4].dtype == dtype
    assert (loaded[0].reading, loaded[4].reading) == (None, reading)
    assert (loaded[0].W_skip is not None) == skip


@pytest.mark.parametrize("of", [torch.tensor, np.float32], ids=["torch", "numpy"])
def test_a_threshold_may_be_a_scalar_of_another_library(make, tmp_path, of):
    TranscoderSet({0: make(BatchTopK(4, of(0.5)))}).save(tmp_path / "tc")
    assert load_transcoders(tmp_path / "tc")[0].activation == BatchTopK(4, 0.5)


def test_a_dtype_by_name_is_refused(saved):
    with pytest.raises(ValueError, match="dtype must be a torch.dtype like torch.float32, or None, got 'float64'"):
        load_transcoders(saved[0], dtype="float64")


def test_stored_dtype_is_kept_on_disk(make, tmp_path):
    TranscoderSet({0: make(ReLU(), dtype=torch.bfloat16)}).save(tmp_path / "tc")
    assert {t.dtype for t in load_file(tmp_path / "tc" / "layer_0.safetensors").values()} == {torch.bfloat16}


def test_layers_may_differ_in_activation_and_hooks(make, x, tmp_path):
    sets = TranscoderSet(
        {
            0: make(TopK(5), hook_in="ln2.hook_normalized"),
            1: make(BatchTopK(3, 1e-05), hook_out="mlp.hook_out"),
            2: make(JumpReLU(0.25)),
            7: make(TopK(6, relu=False)),
        }
    )
    sets.save(tmp_path / "tc")
    loaded = load_transcoders(tmp_path / "tc")
    assert same(loaded, sets, x)
    assert [loaded[l].activation for l in (0, 1, 7)] == [TopK(5), BatchTopK(3, 1e-05), TopK(6, relu=False)]
    assert [loaded.hook_in(l) for l in loaded] == [sets.hook_in(l) for l in sets]
    assert [loaded.hook_out(l) for l in loaded] == [sets.hook_out(l) for l in sets]


def test_configuration_names_what_circuit_tracer_reads(saved):
    config = yaml.safe_load((saved[0] / "config.yaml").read_text())
    expected = {
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "activation": "topk",
        "k": 5,
        "relu": True,
        "layers": [0, 1],
    }
    assert expected.items() <= config.items()


def test_configurations_of_circuit_tracer_load(make, x, tmp_path):
    tc = make(TopK(5, relu=False))
    TranscoderSet({0: tc}).save(tmp_path)
    reconfigure(tmp_path, relu=None, layers=None, pullback_version=None)
    assert load_transcoders(tmp_path)[0].activation == TopK(5, relu=False)
    reconfigure(tmp_path, activation=None, k=None)
    assert load_transcoders(tmp_path)[0].activation == ReLU()
    rewrite(tmp_path / "layer_0.safetensors", **{native.THRESHOLD: torch.full((37,), 0.5)})
    assert load_transcoders(tmp_path)[0].activation == JumpReLU(torch.full((37,), 0.5))
    assert torch.equal(load_transcoders(tmp_path)[0](x), make(JumpReLU(0.5))(x))


def test_tied_weights_are_stored_twice(x, tmp_path):
    W = torch.randn(37, 13)
    tied = Transcoder(W, torch.zeros(37), W, torch.zeros(13), activation=ReLU())
    TranscoderSet({0: tied}).save(tmp_path / "tc")
    assert torch.equal(load_transcoders(tmp_path / "tc")[0](x), tied(x))


@pytest.mark.skipif(os.name == "nt", reason="modes of files are Unix's")
@pytest.mark.parametrize("layout", ["pullback", "saelens", "sparsify", "circuit-tracer"])
def test_whoever_may_read_the_settings_may_read_the_weights(make, tmp_path, layout):
    rule = TopK(5) if layout == "sparsify" else ReLU()
    TranscoderSet({0: make(rule, d_in=11)}).save(tmp_path / "tc", layout)
    modes = {file.stat().st_mode for file in (tmp_path / "tc").rglob("*") if file.is_file()}
    assert len(modes) == 1


def test_saving_again_replaces_the_set_and_nothing_else(make, saved, x):
    directory, _ = saved
    (directory / "notes.txt").write_text("mine")
    fewer = TranscoderSet({1: make(ReLU(), seed=9)})
    fewer.save(directory)
    assert same(load_transcoders(directory), fewer, x)
    assert sorted(os.listdir(directory)) == ["config.yaml", "layer_1.safetensors", "notes.txt"]


@pytest.mark.parametrize("error", [FULL_DISK, KeyboardInterrupt()], ids=["full disk", "ctrl-c"])
@pytest.mark.parametrize("where", ["save_file", "write", "fsync", "replace", "rename"])
def test_a_failed_save_leaves_the_old_set(make, saved, x, monkeypatch, where, error):
    directory, sets = saved
    count = 0

    def fail_on_second_call(original):
        def failing(*args, **kwargs):
            nonlocal count
            count += 1
            if count == (1 if where in ("write", "replace") else 2):
                raise error
            return original(*args, **kwargs)

        return failing

    target = {"save_file": files, "write": native}.get(where, os)
    name = {"write": "atomic_save"}.get(where, where)
    monkeypatch.setattr(target, name, fail_on_second_call(getattr(target, name)))
    with pytest.raises(type(error)):
        TranscoderSet({0: make(ReLU(), seed=7), 1: make(ReLU(), seed=8)}).save(directory)
    monkeypatch.undo()
    assert count
    assert same(load_transcoders(directory), sets, x)
    assert os.listdir(directory.parent) == ["tc"]
    assert len(os.listdir(directory)) == 3


def test_a_disk_that_fills_up_is_an_os_error(saved, x, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match="could not write layer_0.* No space left on device.* intact"):
        saved[1].save(saved[0])
    assert same(load_transcoders(saved[0]), saved[1], x)


def test_a_file_that_is_cut_off_is_named_with_its_size(saved):
    file = saved[0] / "layer_1.safetensors"
    for size in (0, 7, 100, file.stat().st_size - 1):
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(ValueError, match=rf"layer_1.safetensors \({size} bytes\) is damaged or cut off"):
            load_transcoders(saved[0])
        saved[1].save(saved[0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"W_enc": torch.ones(13, 37)},
            r"layer_1.*W_enc must be \[F, d_in\]=\[37, 13\], got \[13, 37\] "
            r"\(transposed\?\)",
        ),
        (
            {"W_dec": torch.ones(11, 37)},
            r"layer_1.*W_dec must be \[F, d_out\]=\[37, 11\], got \[11, 37\] "
            r"\(transposed\?\)",
        ),
        ({"W_dec": torch.ones(36, 11)}, r"layer_1.*W_dec must be \[F, d_out\]=\[37, 11\], got \[36, 11\]"),
        ({"b_enc": torch.full((37,), torch.nan)}, "layer_1.*b_enc has 37 NaN or infinite"),
        ({"b_dec": None}, r"layer_1.*tensors \['b_dec'\] are missing"),
        ({"w_dec": torch.ones(1)}, r"layer_1.*\['w_dec'\] are unknown.*another format"),
        ({"W_enc": torch.ones(37, 12)}, r"agree on \(d_in, d_out\)"),
    ],
    ids=["W_enc transposed", "W_dec transposed", "rows", "nan", "missing", "unknown", "width"],
)
def test_a_file_that_does_not_fit_is_named(saved, changes, sentence):
    rewrite(saved[0] / "layer_1.safetensors", **changes)
    with pytest.raises(ValueError, match=sentence):
        load_transcoders(saved[0])


def test_square_weights_are_taken_as_stored(make, tmp_path):
    sets = TranscoderSet({0: make(ReLU())})
    sets.save(tmp_path)
    W = torch.randn(37, 37)
    rewrite(tmp_path / "layer_0.safetensors", W_enc=W)
    assert torch.equal(load_transcoders(tmp_path)[0].W_enc, W)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layers": [0, 1, 2]}, r"lists layers \[0, 1, 2\], but layer_2.safetensors is missing"),
        ({"layers": [0]}, r"layer_1.safetensors is not among the layers \[0\]"),
        ({"layers": "all"}, "non-empty list of layer numbers"),
        ({"activation": "gelu"}, "activation 'gelu' is unknown; it must be topk"),
        ({"k": None}, "activation topk needs k"),
        ({"k": 38}, "k=38 exceeds the 37 features"),
        ({"activation": "jumprelu"}, "jumprelu needs the tensor activation_function.threshold"),
        ({"model_kind": "cross_layer_transcoder"}, "per-layer sets only"),
    ],
    ids=["missing layer", "extra layer", "no list", "activation", "no k", "big k", "no threshold", "kind"],
)
def test_a_configuration_that_does_not_fit_is_refused(saved, changes, sentence):
    reconfigure(saved[0], **changes)
    with pytest.raises(ValueError, match=sentence):
        load_transcoders(saved[0])


@pytest.mark.parametrize("text", ["a: [", "just words", ""])
def test_a_damaged_configuration_is_refused(saved, text):
    (saved[0] / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="config.yaml.*damaged"):
        load_transcoders(saved[0])


def test_a_missing_set_says_what_one_looks_like_or_where_the_old_one_is(saved):
    with pytest.raises(FileNotFoundError, match="a directory with config.yaml and layer_"):
        load_transcoders(saved[0].parent / "nowhere")
    os.rename(saved[0], previous_directory(saved[0]))
    with pytest.raises(FileNotFoundError, match="complete in .*previous: rename it back"):
        load_transcoders(saved[0])
