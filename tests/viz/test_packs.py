"""Cards on disk: single files, and packs in the layout that circuit-tracer's viewer reads."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from pullback.viz import validate_card
from pullback.viz.packs import as_card, open_cards

RECORD = {
    "index": 2,
    "examples_quantiles": [
        {
            "quantile_name": "top",
            "examples": [{"tokens": ["a", "b"], "tokens_acts_list": [0.0, 2.0], "train_token_ind": 1}],
        },
        {"quantile_name": "rest", "examples": [{"tokens": ["c"], "tokens_acts_list": [1.0], "train_token_ind": 0}]},
    ],
    "top_logits": ["x"],
    "bottom_logits": ["y"],
    "act_min": 0.0,
    "act_max": 2.0,
    "quantile_values": [0.5, 1.0],
    "histogram": [3, 1],
    "activation_frequency": 0.25,
}
CARD = {
    "examples": [
        {"tokens": ["a", "b"], "activations": [0.0, 2.0], "train_token_ind": 1},
    ],
    "sampled": [{"name": "rest", "examples": [{"tokens": ["c"], "activations": [1.0], "train_token_ind": 0}]}],
    "top_logits": ["x"],
    "bottom_logits": ["y"],
    "density": 0.25,
    "histogram": {"counts": [3, 1], "edges": [0.0, 1.0, 2.0]},
    "quantiles": [0.5, 1.0],
}


def write_pack(folder: Path, records: dict[int, list[Any]]) -> None:
    """Layers by number; a feature without a record takes no bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    index: list[Any] = [None] * (max(records) + 1)
    for layer, features in records.items():
        parts = [b"" if f is None else zlib.compress(json.dumps(f).encode()) for f in features]
        parts = [struct.pack("<I", len(part)) + part if part else b"" for part in parts]
        offsets = [sum(map(len, parts[:k])) for k in range(len(parts) + 1)]
        (folder / f"layer_{layer}.bin").write_bytes(b"".join(parts))
        index[layer] = {"filename": f"layer_{layer}.bin", "offsets": offsets}
    (folder / "index.json.gz").write_bytes(gzip.compress(json.dumps(index).encode()))


@pytest.mark.parametrize("below", ["", "features"])
def test_pack(tmp_path: Path, below: str) -> None:
    write_pack(tmp_path / below, {1: [None, {"density": 0.5}, RECORD]})
    card = open_cards(tmp_path)
    assert card(1, 2) == CARD
    assert card(1, 1) == {"density": 0.5}
    assert [card(*place) for place in ((1, 0), (1, 3), (0, 0), (2, 0))] == [None] * 4
    validate_card(CARD)


def test_card_files(tmp_path: Path) -> None:
    (tmp_path / "1_2.json").write_text(json.dumps(RECORD))
    card = open_cards(tmp_path)
    assert card(1, 2) == CARD
    assert card(1, 3) is None


def test_sparse_records() -> None:
    assert as_card({"examples_quantiles": []}) == {"examples": [], "sampled": []}
    assert as_card({"examples_quantiles": [], "histogram": [1]})["histogram"] == {"counts": [1]}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"no gzip", "is no index of feature cards"),
        (gzip.compress(b"[1]"), "is no index of feature cards"),
        (gzip.compress(b'[{"filename": "../secret", "offsets": [0, 9]}]'), "names files outside its folder"),
    ],
    ids=["no gzip", "no index", "outside"],  # what gzip writes has the time in it
)
def test_damaged_packs_are_refused(tmp_path: Path, index: bytes, message: str) -> None:
    (tmp_path / "index.json.gz").write_bytes(index)
    with pytest.raises(ValueError, match=message):
        open_cards(tmp_path)


def test_folder_without_cards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no feature cards in"):
        open_cards(tmp_path)
