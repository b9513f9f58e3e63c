"""Feature cards on disk: a folder of `{layer}_{feature}.json`, or the packed files that circuit-tracer's viewer reads.

A pack is `index.json.gz`, for each layer `{"filename", "offsets"}`, and one file a layer in which bytes
offsets[f]:offsets[f + 1] hold the length (4 bytes, little endian) and the zlib-compressed JSON of feature f.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

INDEX = "index.json.gz"
LENGTH = struct.Struct("<I")
CardSource = Callable[[int, int], "dict[str, Any] | None"]


def open_cards(folder: Path) -> CardSource:
    """What gives the card of (layer, feature), read when asked for, None where there is none.

    Raises:
        ValueError: if the folder holds neither a pack nor card files, or its index is damaged.
    """
    for place in (folder, folder / "features"):
        if (place / INDEX).is_file():
            return _packed(place)
    if not any(folder.glob("[0-9]*_[0-9]*.json")):
        raise ValueError(
            f"no feature cards in {folder}: it holds neither {INDEX} nor files named {{layer}}_{{feature}}.json"
        )

    def read(layer: int, feature: int) -> dict[str, Any] | None:
        path = folder / f"{layer}_{feature}.json"
        return as_card(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    return read


def _packed(folder: Path) -> CardSource:
    try:
        layers = json.loads(gzip.decompress((folder / INDEX).read_bytes()))
        names = [None if layer is None else str(layer["filename"]) for layer in layers]
    except (OSError, ValueError, TypeError, KeyError, EOFError, zlib.error) as error:
        raise ValueError(f"{folder / INDEX} is no index of feature cards: {error}") from error
    if any(name is not None and Path(name).name != name for name in names):
        raise ValueError(f"{folder / INDEX} names files outside its folder")

    def read(layer: int, feature: int) -> dict[str, Any] | None:
        name = names[layer] if layer < len(names) else None
        offsets = layers[layer]["offsets"] if name else []
        if name is None or feature + 1 >= len(offsets) or offsets[feature] == offsets[feature + 1]:
            return None
        return as_card(read_record(folder / name, offsets, feature))

    return lru_cache(maxsize=256)(read)


def read_record(path: Path, offsets: Sequence[int], feature: int) -> dict[str, Any]:
    """What a layer's file holds of a feature. Raises ValueError where it is damaged."""
    begin, end = offsets[feature], offsets[feature + 1]
    with open(path, "rb") as file:
        file.seek(begin)
        data = file.read(end - begin)
    try:
        (length,) = LENGTH.unpack_from(data)
        return json.loads(zlib.decompress(data[LENGTH.size : LENGTH.size + length]))
    except (struct.error, zlib.error, ValueError) as error:
        raise ValueError(f"{path} is damaged at feature {feature}; write or copy the pack again") from error


def as_card(record: dict[str, Any]) -> dict[str, Any]:
    """A card (`CARD_SCHEMA`) of what packs keep of a feature, `examples_quantiles` and so on; one of ours as it is.

    The first group of examples is the strongest ones, `examples`; the others, by strength, are `sampled`.
    """
    if "examples_quantiles" not in record:
        return record
    groups = [
        {"name": quantile.get("quantile_name", ""), "examples": list(map(_example, quantile["examples"]))}
        for quantile in record["examples_quantiles"]
    ]
    card: dict[str, Any] = {"examples": groups[0]["examples"] if groups else [], "sampled": groups[1:]}
    card |= {key: record[key] for key in ("top_logits", "bottom_logits", "deembedding") if key in record}
    if record.get("activation_frequency") is not None:
        card["density"] = record["activation_frequency"]
    if record.get("histogram"):
        card["histogram"] = _histogram(record)
    if record.get("quantile_values"):
        card["quantiles"] = record["quantile_values"]
    return card


def _example(example: dict[str, Any]) -> dict[str, Any]:
    return {
        "tokens": example["tokens"],
        "activations": example["tokens_acts_list"],
        "train_token_ind": example.get("train_token_ind"),
    }


def _histogram(record: dict[str, Any]) -> dict[str, Any]:
    counts, low, high = record["histogram"], record.get("act_min"), record.get("act_max")
    if "histogram_max" in record:  # bins from 0 on, whatever the smallest activation is
        low, high = 0.0, record["histogram_max"]
    if low is None or high is None:
        return {"counts": counts}
    step = (high - low) / len(counts)
    return {"counts": counts, "edges": [low + k * step for k in range(len(counts) + 1)]}
