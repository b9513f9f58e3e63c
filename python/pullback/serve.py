"""The graphs of a folder, as `pullback serve` shows them, with what the reader adds saved beside them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pullback._util.atomic import atomic_save

# A page of more links than this is slow to open: such a graph is pruned for the page, the file is left as it is.
MOST_EDGES = 200_000
NOTES = ".notes.json"
# Files that lie beside graphs and are none.
NOT_GRAPHS = ("graph-metadata.json", "run.json")


class GraphFolder:
    """The graphs in a folder and below: `Graph.save`'s files, and graph JSON. Notes lie beside them.

    Raises ValueError if there is no such folder, or `features` holds no cards.
    """

    def __init__(self, folder: Path, features: Path | None = None) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; name one with graphs that were saved as .safetensors or .json")
        from pullback.viz.packs import open_cards

        self.folder = folder.resolve()
        self._cards = None if features is None else open_cards(features)
        self._read = lru_cache(maxsize=4)(_read)

    @property
    def has_cards(self) -> bool:
        return self._cards is not None

    def names(self) -> list[str]:
        """Paths below the folder, with / between the parts, in order."""
        found = (path for path in self.folder.rglob("*") if _is_graph(path) and not _hidden(path, self.folder))
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def prompt(self, name: str) -> str:
        """The prompt of a saved graph, from the head of its file; of JSON, which would have to be read whole, ""."""
        head = _header(self.folder / name) if name.endswith(".safetensors") else {}
        return json.loads(head.get("meta", "{}")).get("prompt", "")

    def payload(self, name: str) -> dict[str, Any]:
        """The graph as JSON with the saved notes in its qParams; pruned where it is too large for a page."""
        path = self.folder / name
        payload = self._read(path, path.stat().st_mtime_ns)
        notes = self._notes(name)
        if notes.is_file():
            saved = json.loads(notes.read_text(encoding="utf-8"))["qParams"]
            payload = payload | {"qParams": payload["qParams"] | saved}
        return payload

    def save_notes(self, name: str, params: Mapping[str, Any]) -> None:
        """Write the notes whole or not at all; the graph's own file is not touched."""
        atomic_save(self._notes(name), json.dumps({"qParams": dict(params)}, indent=1))

    def card(self, layer: int, feature: int) -> dict[str, Any] | None:
        """What is known of a feature, if anything is."""
        return None if self._cards is None else self._cards(layer, feature)

    def _notes(self, name: str) -> Path:
        return self.folder / f"{name}{NOTES}"


def _is_graph(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix == ".json":
        return not path.name.endswith(NOTES) and path.name not in NOT_GRAPHS
    return path.suffix == ".safetensors" and _is_native(path)


def _is_native(path: Path) -> bool:
    """Transcoders are safetensors too: the header says what a file is."""
    return _header(path).get("format") == "pullback-graph"


def _header(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; of another, nothing."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            return json.loads(file.read(min(length, 2**24))).get("__metadata__", {})
    except (OSError, ValueError, struct.error):
        return {}


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _read(path: Path, _changed: int) -> dict[str, Any]:
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    from pullback.attribution.graph import Graph

    graph = Graph.load(path)
    return (graph if graph.n_edges <= MOST_EDGES else graph.prune()).to_neuronpedia(slug=path.stem)
