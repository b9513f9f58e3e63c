"""Rows in a file: what is read of them, where they are when they move, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from pullback.ops import SparseActivations
from pullback.transcoders import MappedRows, in_memory
from pullback.transcoders.lazy import map_safetensors

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def W():
    return torch.randn(37, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("turned", [False, True], ids=["feature-major", "transposed"])
def test_rows_by_id_and_by_slice(mapped, W, dtype, turned):
    rows = mapped(W.to(dtype), turned=turned)
    assert (rows.shape, rows.dtype, len(rows)) == (W.shape, dtype, 37)
    ids = torch.tensor([36, 0, 5, 5])
    assert torch.equal(rows[ids], W.to(dtype)[ids])
    assert torch.equal(rows[3:9], W.to(dtype)[3:9])
    assert torch.equal(rows[7], W.to(dtype)[7])
    assert torch.equal(rows.held(ids)[36], W.to(dtype)[36])
    assert torch.equal(rows[:], W.to(dtype))
    assert rows[:].is_contiguous()


def test_to_changes_what_is_read_and_not_what_lies_there(mapped, W):
    rows = mapped(W)
    other = rows.to(dtype=torch.bfloat16)
    assert rows.dtype == torch.float32
    assert torch.equal(other[[4]], W[[4]].bfloat16())
    # First rounded to the dtype asked for, then computed in float32, as weights in memory are.
    assert torch.equal(next(other.blocks(torch.float32))[1], W.bfloat16().float()[:37])


def test_a_decoder_of_several_targets(mapped):
    W = torch.randn(9, 3, 4)
    rows = mapped(W)
    assert torch.equal(rows.target(1)[[2, 7]], W[[2, 7], 1])
    held = rows.held(torch.tensor([7, 2, 2]))
    assert torch.equal(held.ids, torch.tensor([2, 7]))
    assert torch.equal(held.target(2)[[7]], W[[7], 2])


def test_held_rows_serve_their_features_only(mapped, W):
    acts = SparseActivations.from_dense(torch.tensor([[0.0, 2, 0, 3], [0, 0, 0, 4]]))
    held = mapped(W[:4]).held(acts.indices)
    renumbered, rows = in_memory(acts, held)
    assert rows is held.rows
    torch.testing.assert_close(renumbered.to_dense() @ rows, acts.to_dense() @ W[:4])
    with pytest.raises(ValueError, match="rows are not held"):
        held[[2]]
    with pytest.raises(ValueError, match="rows are not held"):
        held.renumbered(SparseActivations.from_dense(torch.ones(1, 4)))


def test_no_active_feature_is_fine(mapped, W):
    acts = SparseActivations.from_dense(torch.zeros(2, 37))
    renumbered, rows = in_memory(acts, mapped(W))
    assert renumbered.nnz == 0
    assert rows.shape == (1, 5)


def test_nan_is_refused_where_it_is_read(mapped, W):
    W[3, 1] = torch.nan
    rows = mapped(W)
    rows[[2, 4]]
    with pytest.raises(ValueError, match="NaN or infinite"):
        rows[[2, 3]]


def test_weights_in_memory_are_no_mapped_rows(W):
    with pytest.raises(ValueError, match="lie in memory"):
        MappedRows(W)


def test_pickled_as_a_place_in_the_file(mapped, W):
    rows = mapped(W, turned=True).to(dtype=torch.float64)
    data = pickle.dumps(rows)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again.dtype == torch.float64
    assert torch.equal(again[:], W.double())
    assert copy.deepcopy(rows) is rows


def test_a_pickle_is_read_in_another_process(mapped, W, tmp_path):
    (tmp_path / "rows.pickle").write_bytes(pickle.dumps(mapped(W)))
    code = "import pickle, sys; print(float(pickle.load(open(sys.argv[1], 'rb'))[[6]].double().sum()))"
    out = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "rows.pickle"], capture_output=True, text=True, check=True
    )
    assert float(out.stdout) == float(W[6].double().sum())


def test_a_pickle_of_a_file_that_changed_is_refused(mapped, W, tmp_path):
    data = pickle.dumps(mapped(W))
    (file,) = tmp_path.iterdir()
    os.utime(file, (1, 1))
    with pytest.raises(ValueError, match="has changed since"):
        pickle.loads(data)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="has to stay"):
        pickle.loads(data)


def test_what_is_no_whole_safetensors_file_is_refused(tmp_path, W):
    file = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="is missing"):
        map_safetensors(file)
    save_file({"W": W, "empty": torch.zeros(0, 5)}, file)
    whole = file.read_bytes()
    assert map_safetensors(file)["empty"].shape == (0, 5)
    for damaged in (b"", whole[:5], whole[:40], whole[:-1], b"\xff" * 8 + whole[8:], whole[:8] + b"x" + whole[9:]):
        other = tmp_path / "b.safetensors"
        other.unlink(missing_ok=True)
        other.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or cut off"):
            map_safetensors(other)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [1]},
    ],
    ids=["dtype", "behind the end", "size", "before the start", "no offsets"],
)
def test_a_header_that_cannot_be_is_refused(tmp_path, entry):
    header = json.dumps({"W": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match="damaged or cut off"):
        map_safetensors(tmp_path / "a.safetensors")
