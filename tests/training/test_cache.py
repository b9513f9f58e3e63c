"""The activation cache: what is in it, kills and full disks, damage, and training from it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from pullback.training import CachedActivations, TrainConfig, cache, cache_activations, train_on_cache
from pullback.transcoders import CrossLayerTranscoder, load_transcoders
from tests.training.conftest import D_MODEL, D_VOCAB, ToyLens

ROOT = Path(__file__).parents[2]
SETTINGS = {"d_sae": 48, "k": 8, "training_tokens": 2000, "train_batch_size_tokens": 100, "lr": 1e-2}


def prompts():
    return torch.randint(1, D_VOCAB, (24, 10), generator=torch.Generator().manual_seed(3))


def make(path, lens=None, **options):
    options = {"shard_tokens": 40, "store_batch_size_prompts": 2, "verbose": False} | options
    return cache_activations(lens or ToyLens(), prompts(), path, **options)


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setattr("pullback.lens.as_lens", lambda model: model)


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.suffix == ".safetensors"}


def rows(batches):
    """All rows of x of the first layer, sorted, to compare as sets."""
    return sorted(tuple(row) for batch in batches for row in batch[0].tolist())


def flip(file, at=-9):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 0), ("bfloat16", 2**-8), ("float16", 2**-11), ("int8", 0.5 / 127)]
)
def test_rows_come_back_as_the_model_gave_them(tmp_path, dtype, tolerance):
    lens = ToyLens()
    made = make(tmp_path, lens, dtype=dtype)
    assert (made.n_tokens, made.layers, made.dtype, made.complete) == (240, [0, 1], dtype, True)
    assert made.widths == {0: (D_MODEL, D_MODEL), 1: (D_MODEL, D_MODEL)}
    assert lens.forward_passes == 12
    for number in range(6):
        shard = made.shard(number)
        ids = shard["token_ids"].long()
        first = lens.W_E[ids]
        second = first + lens.mlp(0, first)
        expected = {0: (first, lens.mlp(0, first)), 1: (second, lens.mlp(1, second))}
        for layer, pair in expected.items():
            for which, truth in zip("xy", pair, strict=True):
                got = cache.shards.restored(shard, f"layers.{layer}.{which}", torch.arange(len(ids)), torch.float32)
                gap = (got - truth).abs() / truth.abs().amax(1, keepdim=True)
                assert float(gap.max()) <= tolerance + 1e-6


def test_the_manifest_says_what_is_in_it(tmp_path):
    made = make(tmp_path, layers=[1], n_tokens=95, exclude_special_tokens=[7], seed=3)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert made.n_tokens == 95 == sum(shard["rows"] for shard in manifest["shards"])
    assert manifest["settings"]["excluded"] == {"bos": None, "pad": None, "special": [7]}
    assert manifest["readings"]["1"] == ToyLens().reading(1).to_dict()
    for shard in manifest["shards"]:
        file = tmp_path / shard["file"]
        assert (file.stat().st_size, cache.shards.sha256(file)) == (shard["bytes"], shard["sha256"])
    assert not bool((torch.cat([made.shard(i)["token_ids"] for i in range(len(manifest["shards"]))]) == 7).any())


def test_batches_are_shuffled_complete_and_the_same_for_a_seed(tmp_path):
    made = make(tmp_path)
    everything = rows([[ToyLens().W_E[prompts().flatten()]]])
    one, again, other = (list(made.batches(32, seed=seed)) for seed in (0, 0, 1))
    assert [len(batch[0]) for batch in one] == [32] * 7 + [16]
    assert rows(one) == rows(other) == everything
    assert all(torch.equal(a, b) for x, y in zip(one, again, strict=True) for a, b in zip(x, y, strict=True))
    assert not torch.equal(one[0][0], other[0][0])
    lens = ToyLens()
    for x0, y0, x1, y1 in one:
        torch.testing.assert_close(y0, lens.mlp(0, x0))
        torch.testing.assert_close(x1, x0 + y0)
        torch.testing.assert_close(y1, lens.mlp(1, x1))
    swapped = next(made.batches(32, layers=[1]))
    assert len(swapped) == 2
    assert torch.equal(swapped[0], one[0][2])
    two = list(made.batches(100, epochs=2, mix_tokens=1))
    assert rows(two) == sorted(everything * 2)
    assert [len(batch[0]) for batch in two] == [100] * 4 + [80]


@pytest.mark.parametrize("at", [0, 1, 5, 11])
def test_batches_go_on_where_they_were(tmp_path, at):
    made = make(tmp_path)
    whole = list(made.batches(32, epochs=2, mix_tokens=1))
    first = made.batches(32, epochs=2, mix_tokens=1)
    for _ in range(at):
        next(first)
    second = CachedActivations(tmp_path).batches(32, epochs=2, mix_tokens=1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert all(torch.equal(a[3], b[3]) for a, b in zip(whole[at:], second, strict=True))


def test_several_readers_at_once_see_the_same(tmp_path):
    made = make(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(lambda _: torch.cat([b[1] for b in CachedActivations(tmp_path).batches(7)]), range(4)))
    assert all(torch.equal(seen[0], other) for other in seen)
    assert torch.equal(seen[0], torch.cat([b[1] for b in made.batches(7)]))


CHILD = """
import os, signal, sys
import pullback.lens
pullback.lens.as_lens = lambda model: model
from tests.training import test_cache
calls, original, n = 0, os.replace, int(sys.argv[2])
def counted(*args):
    global calls
    calls += 1
    if calls == n:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
os.replace = counted
test_cache.make(sys.argv[1])
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_killed_run_is_continued_to_the_same_bytes(tmp_path):
    make(tmp_path / "whole")
    lens = ToyLens()
    for n in (4, 3):  # before a shard appears, and before the manifest knows it
        arguments = [sys.executable, "-c", CHILD, str(tmp_path / "killed"), str(n)]
        assert subprocess.run(arguments, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    with pytest.warns(UserWarning, match="not made to the end: it has 80 tokens"):
        CachedActivations(tmp_path / "killed")
    made = make(tmp_path / "killed", lens)
    assert lens.forward_passes == 8, "what was written is not run again"
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert made.verify() == []
    assert not list((tmp_path / "killed").glob(".*"))
    make(tmp_path / "killed", lens)
    assert lens.forward_passes == 8, "a complete cache is left as it is"


def test_a_full_disk_leaves_complete_shards(tmp_path, monkeypatch):
    original = cache.save_file

    def full(tensors, file):
        original(tensors, file)
        if ".shard_00003" in str(file):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            make(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "manifest.json",
        *(f"shard_{i:05d}.safetensors" for i in range(3)),
    ]
    with pytest.warns(UserWarning, match="120 tokens"):
        assert CachedActivations(tmp_path).verify() == []
    assert make(tmp_path).n_tokens == 240


def test_a_damaged_shard_is_named_and_refused(tmp_path):
    make(tmp_path)
    flip(tmp_path / "shard_00002.safetensors")
    with pytest.raises(ValueError, match=r"shard_00002\.safetensors is not what was written"):
        list(CachedActivations(tmp_path).batches(32))
    with pytest.raises(ValueError, match=r"shard_00002"):
        train_on_cache(tmp_path, TrainConfig(**SETTINGS), verbose=False)
    (tmp_path / "shard_00002.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"shard_00002\.safetensors is missing or cut off"):
        CachedActivations(tmp_path)
    assert make(tmp_path).verify() == [], "written again"


def test_a_damaged_shard_is_named_and_skipped(tmp_path):
    made = make(tmp_path)
    spoilt = [tuple(row) for row in made.shard(2, [0])["layers.0.x"].tolist()]
    everything = rows(made.batches(32))
    flip(tmp_path / "shard_00002.safetensors")
    opened = CachedActivations(tmp_path, on_corrupt="skip")
    with pytest.warns(UserWarning, match=r"shard_00002\.safetensors .* left out"):
        left = list(opened.batches(32, seed=5))
    for row in spoilt:
        everything.remove(row)
    assert rows(left) == everything
    assert opened.corrupt == ["shard_00002.safetensors"]
    resumed = CachedActivations(tmp_path, on_corrupt="skip").batches(32, seed=5)
    resumed.load_state_dict({"batches": 3, "left_out": opened.corrupt})
    assert all(torch.equal(a[0], b[0]) for a, b in zip(left[3:], resumed, strict=True))


@pytest.mark.filterwarnings("ignore:.*left out")
def test_damage_between_two_halves_of_a_run_is_found(tmp_path):
    make(tmp_path)
    first = CachedActivations(tmp_path, on_corrupt="skip").batches(32, mix_tokens=1)
    next(first)
    for number in range(5):
        flip(tmp_path / f"shard_{number:05d}.safetensors")
    second = CachedActivations(tmp_path, on_corrupt="skip").batches(32, mix_tokens=1)
    with pytest.warns(UserWarning, match="left out"):
        second.load_state_dict(first.state_dict())
    left = rows(second)
    good = rows([[CachedActivations(tmp_path, on_corrupt="skip").shard(5)["layers.0.x"]]])
    assert set(left) <= set(good)


@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_cache_with_nothing_sound_says_so(tmp_path):
    make(tmp_path)
    for number in range(6):
        flip(tmp_path / f"shard_{number:05d}.safetensors")
    with pytest.raises(ValueError, match="no shard that is sound"):
        next(CachedActivations(tmp_path, on_corrupt="skip").batches(8))


def equal(a, b):
    return all(torch.equal(v, w) for l in a for v, w in zip(a[l].parameters(), b[l].parameters(), strict=True))


def test_several_configurations_train_on_one_reading(tmp_path):
    made = make(tmp_path / "cache")
    configs = [TrainConfig(**SETTINGS), TrainConfig(**SETTINGS | {"k": 4}), TrainConfig(**SETTINGS, seed=7)]
    together = train_on_cache(made, configs=configs, verbose=False, output_path=tmp_path / "out")
    assert [sets[0].activation.k for sets in together] == [8, 4, 8]
    assert not torch.equal(together[0][0].W_enc, together[2][0].W_enc)
    assert together[0][1].reading == ToyLens().reading(1)
    alone = [train_on_cache(made, config, verbose=False) for config in configs[:2]]
    assert equal(together[0], alone[0])
    assert equal(together[1], alone[1])
    assert equal(load_transcoders(tmp_path / "out" / "run_1"), together[1])


def test_a_cross_layer_transcoder_and_per_layer_ones_train_on_one_reading(tmp_path):
    made = make(tmp_path / "cache")
    configs = [TrainConfig(**SETTINGS), TrainConfig(**SETTINGS, cross_layer=True, decoder_tying="per_source")]
    sets, clt = train_on_cache(made, configs=configs, verbose=False, output_path=tmp_path / "out")
    loaded = load_transcoders(tmp_path / "out" / "run_1")
    assert isinstance(loaded, CrossLayerTranscoder)
    assert (loaded.decoder_tying, loaded[1].reading) == ("per_source", ToyLens().reading(1))
    assert equal(loaded, clt)
    assert equal(sets, train_on_cache(made, configs[0], verbose=False))


def test_training_on_a_cache_resumes_to_the_bit(tmp_path, monkeypatch):
    make(tmp_path / "cache")
    configs = [TrainConfig(**SETTINGS), TrainConfig(**SETTINGS | {"k": 4})]
    options = {"configs": configs, "checkpoint_path": tmp_path / "ck", "checkpoint_every_tokens": 300}
    whole = train_on_cache(tmp_path / "cache", configs=configs, verbose=False)
    step, calls = cache.CachedActivations.batches, []

    def stopping(*args, **kwargs):
        batches = step(*args, **kwargs)
        original = type(batches).__next__

        def counted(self):
            calls.append(1)
            if len(calls) == 12:
                raise KeyboardInterrupt
            return original(self)

        monkeypatch.setattr(type(batches), "__next__", counted)
        return batches

    with monkeypatch.context() as patch:
        patch.setattr(cache.CachedActivations, "batches", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_on_cache(tmp_path / "cache", verbose=False, **options)
    resumed = train_on_cache(tmp_path / "cache", verbose=False, resume=True, **options)
    assert equal(whole[0], resumed[0])
    assert equal(whole[1], resumed[1])


@pytest.mark.parametrize("of", [torch.tensor, np.array], ids=["torch", "numpy"])
def test_layers_are_numbers_of_any_kind(tmp_path, of):
    assert make(tmp_path, layers=of([1, 0, 1])).layers == [0, 1]


def test_what_does_not_fit_is_refused(tmp_path):
    made = make(tmp_path, layers=[0])
    with pytest.raises(ValueError, match="holds a cache with seed 0, not 1"):
        make(tmp_path, layers=[0], seed=1)
    other = ToyLens()
    other.reading = lambda layer: ToyLens().reading(layer).__class__("other", 2, D_MODEL, 20, "none", True, False, "0")
    with pytest.raises(ValueError, match="cache of another model"):
        make(tmp_path, other, layers=[0])
    with pytest.raises(ValueError, match=r"holds layers \[0\], not \[1\]"):
        train_on_cache(made, TrainConfig(**SETTINGS, layers=[1]), verbose=False)
    with pytest.raises(ValueError, match="was made with hook_name='mlp.hook_in'"):
        train_on_cache(made, TrainConfig(**SETTINGS, hook_name="ln2.hook_out"), verbose=False)
    configs = [TrainConfig(**SETTINGS), TrainConfig(**SETTINGS | {"training_tokens": 100})]
    with pytest.raises(ValueError, match="agree on training_tokens, got 2000, 100"):
        train_on_cache(made, configs=configs, verbose=False)
    with pytest.raises(ValueError, match="at least one"):
        train_on_cache(made, configs=[], verbose=False)
    with pytest.raises(ValueError, match="dtype must be one of"):
        make(tmp_path / "x", dtype="int4")
    with pytest.raises(FileNotFoundError, match="make a cache there"):
        CachedActivations(tmp_path / "nowhere")
    with pytest.raises(ValueError, match='"refuse" or "skip"'):
        CachedActivations(tmp_path, on_corrupt="ignore")
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        CachedActivations(tmp_path)


@pytest.mark.parametrize(("factor", "sentence"), [(1e6, "beyond float16; use bfloat16"), (torch.nan, "NaN or inf")])
def test_activations_that_cannot_be_kept_are_refused(tmp_path, factor, sentence):
    lens = ToyLens()
    lens.W_E = lens.W_E * factor
    with pytest.raises(ValueError, match=sentence):
        make(tmp_path, lens, dtype="float16")
