"""`pullback convert` as a newcomer types it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pullback import cli, commands
from pullback.transcoders import (
    CrossLayerTranscoder,
    JumpReLU,
    ReLU,
    SourceLayer,
    TopK,
    Transcoder,
    TranscoderSet,
    load_transcoders,
)
from pullback.transcoders.formats.recognise import READABLE
from pullback.transcoders.formats.writing import WRITERS

D, F = 6, 24


@pytest.fixture
def sets():
    def make(seed):
        g = torch.Generator().manual_seed(seed)
        shapes = ((F, D), (F,), (F, D), (D,))
        return Transcoder(*(torch.randn(shape, generator=g) for shape in shapes), activation=TopK(4))

    return TranscoderSet({0: make(0), 1: make(1)})


@pytest.fixture
def folder(sets, tmp_path):
    sets.save(tmp_path / "tc")
    return tmp_path / "tc"


@pytest.fixture
def x():
    return torch.randn(200, D, generator=torch.Generator().manual_seed(9))


def convert(*arguments):
    return cli.main(["convert", *map(str, arguments)])


def test_layouts_to_choose_from_are_those_that_there_are():
    assert commands.convert.READABLE == READABLE
    assert tuple(WRITERS) == commands.convert.WRITABLE


def test_there_and_back(sets, folder, tmp_path, x, capsys):
    assert convert(folder, tmp_path / "run", "--to", "sparsify", "--hookpoint", "h.{layer}.mlp") == 0
    assert "TopK(k=4" in capsys.readouterr().out
    assert (tmp_path / "run" / "h.1.mlp" / "sae.safetensors").is_file()
    assert convert(tmp_path / "run", tmp_path / "back", "--to", "pullback") == 0
    assert all(torch.equal(load_transcoders(tmp_path / "back")[l](x), sets[l](x)) for l in sets)


def test_a_cross_layer_transcoder(tmp_path, x, capsys):
    def source(t):
        weights = torch.randn(F, D), torch.randn(F), torch.randn(F, t, D), torch.randn(D)
        return SourceLayer(*weights, activation=ReLU())

    clt = CrossLayerTranscoder({0: source(1), 1: source(1)}, "per_source")
    clt.save(tmp_path / "clt")
    assert convert(tmp_path / "clt", tmp_path / "out", "--to", "circuit-tracer") == 0
    assert "2 layers, circuit-tracer" in capsys.readouterr().out
    written = load_transcoders(tmp_path / "out")
    torch.testing.assert_close(written({0: x, 1: x})[1], clt({0: x, 1: x})[1])


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
@pytest.mark.parametrize("target", ["saelens", "circuit-tracer"])
def test_calibration_on_given_inputs(folder, tmp_path, x, target, kind, capsys):
    file = tmp_path / f"inputs.{kind}"
    if kind == "npz":
        np.savez(file, **{str(l): x.numpy() for l in (0, 1)})
    else:
        save_file({f"layer_{l}": x.clone() for l in (0, 1)}, file)
    assert convert(folder, tmp_path / "out", "--to", target, "--calibrate", file) == 0
    said = capsys.readouterr().out
    assert "JumpReLU" in said
    assert "was TopK(k=4" in said
    loaded = load_transcoders(tmp_path / "out")[0]
    assert isinstance(loaded.activation, JumpReLU)
    assert loaded.encode(x).values.numel() == load_transcoders(folder)[0].encode(x).values.numel()


def test_calibration_on_prompts_of_a_zoo_model(tmp_path, capsys):
    from pullback import zoo

    zoo.transcoders("tiny-mix").save(tmp_path / "tc")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the capital of the state containing dallas is\ndallas is in\n")
    out = tmp_path / "out"
    where = ["--calibrate", prompts, "--model", "tiny-mix", "--layer", 0]
    assert convert(tmp_path / "tc", out, "--to", "saelens", *where) == 0
    assert "layer 0: 128 -> " in capsys.readouterr().out
    cfg = json.loads((out / "blocks.0.mlp.hook_in" / "cfg.json").read_text())
    assert cfg["architecture"] == "jumprelu_transcoder"


def test_what_is_there_is_kept_without_force(sets, folder, tmp_path, x, capsys):
    (tmp_path / "run").mkdir()
    TranscoderSet({0: sets[1]}).save(tmp_path / "run", "sparsify")
    assert convert(folder, tmp_path / "run", "--to", "pullback") == 2
    assert "holds transcoders already" in capsys.readouterr().err
    assert convert(folder, tmp_path / "run", "--to", "sparsify", "--force") == 0
    assert torch.equal(load_transcoders(tmp_path / "run")[0](x), sets[0](x))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere", "out", "--to", "pullback"], "no nowhere; a transcoder set is"),
        (["tc", "out", "--to", "saelens"], "pass calibrate="),
        (["tc", "out", "--to", "saelens", "--calibrate", "p.txt"], "needs --model"),
        (["tc", "out", "--to", "saelens", "--calibrate", "one.npz"], "has no inputs of layers [1]"),
        (["tc", "out", "--to", "saelens", "--calibrate", "broken.npz"], "damaged"),
        (["tc", "out", "--to", "saelens", "--hookpoint", "h.{layer}.mlp"], "names sparsify's folders"),
        (["tc", "p.txt", "--to", "saelens"], "DST names a file"),
        (["tc", "out", "--to", "pullback", "--layer", "7"], "has no layer 7"),
        (["tc", "out", "--to", "pullback", "--from", "sparsify"], "no sae.safetensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_get_a_sentence_and_status_2(folder, x, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "p.txt").write_text("words\n")
    (folder.parent / "broken.npz").write_bytes(b"PK nothing")
    np.savez(folder.parent / "one.npz", **{"0": x.numpy()})
    assert convert(*arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not (folder.parent / "out").exists()


def test_relu_needs_no_calibration(sets, tmp_path, x):
    tc = sets[0]
    relu = Transcoder(tc.W_enc, tc.b_enc, tc.W_dec, tc.b_dec, activation=ReLU())
    TranscoderSet({0: relu}).save(tmp_path / "tc")
    assert convert(tmp_path / "tc", tmp_path / "out", "--to", "saelens") == 0
    assert torch.equal(load_transcoders(tmp_path / "out")[0](x), relu(x))
