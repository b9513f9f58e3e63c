"""Dictionaries as the neighbours store them, made by hand from the layouts in docs/FORMATS.md."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from pullback.transcoders import TranscoderSet, load_transcoders

D, F = 11, 37


@pytest.fixture
def square_x():
    """Float[Tensor, '50 11']"""
    return torch.randn(50, D, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def draw():
    """draw(*shape) -> the next random tensor of a fixed stream"""
    g = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(*shape, generator=g)


@pytest.fixture
def write():
    """write(folder, weights file, tensors, config file, config): one dictionary of a neighbour."""

    def files(folder, name, tensors, config_name, config):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
        (folder / config_name).write_text(json.dumps(config))
        return folder

    return files


@pytest.fixture
def round_trip(tmp_path):
    """round_trip(sets, format, **options) -> the set as it is read again"""

    def go(sets, format, **options):
        assert isinstance(sets, TranscoderSet)
        sets.save(tmp_path / "out", format, **options)
        return load_transcoders(tmp_path / "out")

    return go
