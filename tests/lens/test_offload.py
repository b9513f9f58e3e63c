"""Models and tensors out of memory: the same numbers, less memory, and everything back where it was."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch

from pullback.attribution import attribute
from pullback.lens import as_lens, offloaded, on_disk
from pullback.lens import offload as module
from tests import models
from tests.memory import give_back, status

TOKENS = [49, 3, 17, 3, 8, 21]
needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def _anonymous() -> int:
    give_back()
    return status("RssAnon")


@dataclass(frozen=True)
class Two:
    big: torch.Tensor
    small: torch.Tensor


def test_structures_of_tensors():
    big, small = torch.randn(200, 300), torch.randn(3)
    value = {"a": [Two(big, small), None], "b": (big.T, big.bfloat16(), "text")}
    filed = on_disk(value)
    assert torch.equal(filed["a"][0].big, big)
    assert filed["a"][0].small is small
    assert filed["a"][0].big.data_ptr() != big.data_ptr()
    assert torch.equal(filed["b"][0], big.T)
    assert torch.equal(filed["b"][1], big.bfloat16())
    assert filed["b"][2] == "text"


@needs_proc
def test_what_is_in_a_file_is_not_written_again():
    filed = on_disk(torch.randn(200, 300))
    assert on_disk(filed) is filed


@needs_proc
@torch.no_grad()
def test_a_large_model_leaves_memory_and_comes_back():
    model = torch.nn.Sequential(torch.nn.Linear(8, 1_200_000), torch.nn.Linear(1_200_000, 8))
    x = torch.randn(2, 8)
    y, size = model(x), sum(p.nbytes for p in model.parameters())
    before = _anonymous()
    with offloaded(model, "disk"):
        assert all(module._in_a_file(p) for p in model.parameters() if p.nbytes >= module.SMALLEST)
        assert before - _anonymous() > 0.4 * size
        assert torch.equal(model(x), y)
    assert not any(module._in_a_file(p) for p in model.parameters())
    assert torch.equal(model(x), y)
    for p in model.parameters():
        p.add_(0)  # no longer read-only


def test_tied_weights_stay_tied_and_an_error_brings_all_back(monkeypatch):
    monkeypatch.setattr(module, "SMALLEST", 1)
    linear, other = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    other.weight.data = linear.weight.data
    both = torch.nn.ModuleList([linear, other])
    weight = linear.weight.detach().clone()

    def fail() -> None:
        with offloaded(both, "disk"):
            assert linear.weight.data_ptr() == other.weight.data_ptr()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert linear.weight.data_ptr() == other.weight.data_ptr()
    assert torch.equal(linear.weight, weight)
    linear.weight.data.add_(1)
    assert torch.equal(other.weight, weight + 1)


def test_a_full_disk_leaves_the_model_as_it_was(monkeypatch):
    monkeypatch.setattr(module, "SMALLEST", 1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    written, filed = [], module._filed

    def full(tensor):
        written.append(tensor)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        return filed(tensor)

    monkeypatch.setattr(module, "_filed", full)
    with pytest.raises(OSError, match="No space"), offloaded(model, "disk"):
        pass
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    model[0].weight.data.add_(1)


@pytest.mark.parametrize("name", ["LN-gqa-rotary-plain", "neox-parallel", "gpt2", "llama"])
def test_the_same_graph(name, monkeypatch):
    monkeypatch.setattr(module, "SMALLEST", 1)
    lens = as_lens(models.build(name))
    sets = models.random_set(lens, skip=True)
    ours, theirs = (attribute(lens, sets, TOKENS, offload=offload, batch_size=8) for offload in ("disk", None))
    assert torch.equal(ours.sources, theirs.sources)
    torch.testing.assert_close(ours.weights, theirs.weights, rtol=1e-11, atol=1e-13)


def test_refused(monkeypatch):
    lens = as_lens(models.build("llama"))
    sets = models.random_set(lens)
    with pytest.raises(ValueError, match="offload must be None, 'cpu' or 'disk', got 'gpu'"):
        attribute(lens, sets, TOKENS, offload="gpu")
    with pytest.raises(ValueError, match="on the CPU already; 'disk'"):
        attribute(lens, sets, TOKENS, offload="cpu")
    with pytest.raises(ValueError, match="offload is for engine 'linear'"):
        attribute(lens, sets, TOKENS, offload="disk", engine="autograd")
