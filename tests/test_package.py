"""The package as a whole: what it exports, how lightly it imports, what a wheel of it holds."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pullback


def test_every_exported_name_is_there() -> None:
    assert pullback.__all__ == sorted(pullback.__all__, key=lambda name: (name[0].islower(), name))
    for name in pullback.__all__:
        assert getattr(pullback, name) is not None
        assert name in dir(pullback)


def test_the_version_is_that_of_the_installation() -> None:
    assert pullback.__version__ == version("pullback")


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(pullback, "nonsense")


def test_importing_loads_no_room_and_no_heavy_library() -> None:
    heavy = "('pullback.', 'transformer', 'torch', 'numpy')"
    script = f"import sys, pullback; print([m for m in sys.modules if m.startswith({heavy})])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_ops_transcoders_and_training_work_without_transformer_lens() -> None:
    script = """
import sys
sys.modules["transformer_lens"] = None  # importing it fails
import torch, pullback as pb
x = torch.randn(64, 8)
step = pb.TrainStep(8, 8, 32, k=4)
first = float(step(x, x))
for _ in range(30): last = float(step(x, x))
assert last < first
y = step.transcoder(x)
assert y.shape == x.shape
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
