"""Feature packs on disk: `index.json.gz`, and a `layer_{i}.bin` of compressed cards a layer (FORMATS.md e)."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pullback._util.atomic import atomic_directory
from pullback.viz.packs import INDEX, LENGTH, as_card, read_record


class FeaturePack:
    """Cards of features, read one at a time from a folder: of `write_feature_pack`, or of circuit-tracer's `features/`.

    Raises FileNotFoundError where there is no pack, ValueError for one that is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / INDEX).is_file():
            raise FileNotFoundError(f"no feature pack at {self.path}: it has no {INDEX}")
        try:
            index = json.loads(gzip.decompress((self.path / INDEX).read_bytes()))
            self._offsets = {i: (entry["filename"], entry["offsets"]) for i, entry in enumerate(index) if entry}
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path / INDEX} is damaged: {error}; write or copy the pack again") from error

    @property
    def layers(self) -> list[int]:
        return [i for i, (_, offsets) in self._offsets.items() if len(offsets) > 1]

    def n_features(self, layer: int) -> int:
        return max(0, len(self._offsets.get(layer, ("", []))[1]) - 1)

    def record(self, layer: int, feature: int) -> dict[str, Any]:
        """All that is known of a feature, as it stands in the file. Raises KeyError for one that is not there."""
        if not 0 <= feature < self.n_features(layer):
            raise KeyError(f"the pack at {self.path} has no feature {feature} of layer {layer}")
        name, offsets = self._offsets[layer]
        return read_record(self.path / name, offsets, feature)

    def card(self, layer: int, feature: int) -> dict[str, Any]:
        """What a page shows of a feature (`viz.CARD_SCHEMA`). Raises KeyError for a feature that is not there."""
        return as_card(self.record(layer, feature))


class PackWriter:
    def __init__(self, folder: Path, n_layers: int) -> None:
        self.folder = folder
        self.index: list[dict[str, Any]] = [{"filename": f"layer_{i}.bin", "offsets": [0]} for i in range(n_layers)]

    def write(self, layer: int, records: Iterable[dict[str, Any]]) -> None:
        """The cards of all features of a layer, in order."""
        offsets = self.index[layer]["offsets"]
        with open(self.folder / f"layer_{layer}.bin", "wb") as file:
            for record in records:
                card = zlib.compress(json.dumps(record, ensure_ascii=False, allow_nan=False).encode())
                offsets.append(offsets[-1] + file.write(LENGTH.pack(len(card))) + file.write(card))


@contextmanager
def writing(path: str | os.PathLike[str], n_layers: int) -> Iterator[PackWriter]:
    """A pack that replaces the one at `path` when the block ends well."""

    def of_a_pack(name: str) -> bool:
        return name == INDEX or re.fullmatch(r"layer_\d+\.bin", name) is not None

    with atomic_directory(path, manifest=INDEX, owned=of_a_pack) as folder:
        writer = PackWriter(folder, n_layers)
        yield writer
        (folder / INDEX).write_bytes(gzip.compress(json.dumps(writer.index).encode()))
