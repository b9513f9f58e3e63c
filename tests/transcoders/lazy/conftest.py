"""Small blocks, so that small dictionaries stream through in many."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from pullback.transcoders import MappedRows
from pullback.transcoders.lazy import map_safetensors, rows


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 8 features, whatever their width."""
    monkeypatch.setattr(rows, "BLOCK_BYTES", 0)
    monkeypatch.setattr(rows, "FEWEST", 8)


@pytest.fixture
def mapped(tmp_path):
    """mapped(tensor, dtype=...) -> the tensor in a file; with turned=True the file holds its transpose."""

    def write(tensor: torch.Tensor, *, turned: bool = False, **options) -> MappedRows:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_file({"odd": torch.zeros(3), "W": (tensor.T if turned else tensor).contiguous()}, file)
        stored = map_safetensors(file)["W"]
        return MappedRows(stored.T if turned else stored, **options)

    return write


def assert_same(ours, theirs):
    """Two SparseActivations, to the bit."""
    assert ours.n_features == theirs.n_features
    for column in ("indptr", "indices", "values"):
        torch.testing.assert_close(getattr(ours, column), getattr(theirs, column), rtol=0, atol=0, equal_nan=True)
    ours.validate()
