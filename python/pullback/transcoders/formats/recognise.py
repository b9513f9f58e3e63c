"""Which layout a folder or file has, by the names of its files. Two that fit, or none, are refused by name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pullback.transcoders.formats.files import read_safetensors
from pullback.transcoders.formats.tables import CONVENTIONS, fitting

DEPTH = 4  # folders below the one given: google/gemma-scope has layer_0/width_16k/average_l0_76/params.npz
OF_A_RUN = re.compile(r"(state|optimizer_\d+|lr_scheduler_\d+|rank_\d+_state|ae_\d+)\.pt")


@dataclass(frozen=True)
class Layout:
    """A layout, and the files that show it."""

    name: str
    shown_by: str
    matches: Callable[[set[str]], bool]


def _any(pattern: str) -> Callable[[set[str]], bool]:
    compiled = re.compile(pattern)
    return lambda names: any(compiled.fullmatch(name) for name in names)


def _all(*wanted: str) -> Callable[[set[str]], bool]:
    return lambda names: set(wanted) <= names


_LAYER = _any(r"layer_\d+\.safetensors")
_CLT_LAYER = _any(r"W_(enc|dec)_\d+\.safetensors")
_GEMMA_CLT_LAYER = _any(r"params_layer_\d+\.safetensors")

LAYOUTS = (
    Layout(
        "pullback",
        "config.yaml and layer_0.safetensors, layer_1.safetensors, ...",
        lambda names: "config.yaml" in names and _LAYER(names) and not _CLT_LAYER(names),
    ),
    Layout(
        "circuit-tracer",
        "a config.yaml that lists its transcoders",
        lambda names: (
            "config.yaml" in names
            and not _LAYER(names)
            and not _CLT_LAYER(names)
            and "checkpoint.safetensors" not in names
        ),
    ),
    Layout("saelens", "cfg.json and sae_weights.safetensors", _all("cfg.json", "sae_weights.safetensors")),
    Layout("sparsify", "cfg.json and sae.safetensors", _all("cfg.json", "sae.safetensors")),
    Layout("gemmascope", "params.npz", _all("params.npz")),
    Layout("gemmascope2", "config.json and params.safetensors", _all("config.json", "params.safetensors")),
    Layout("dictionary_learning", "config.json and ae.pt", _all("config.json", "ae.pt")),
    Layout(
        "transcoder_circuits",
        "a .pt file",
        lambda names: (
            any(name.endswith(".pt") and name != "ae.pt" and not OF_A_RUN.fullmatch(name) for name in names)
            and not names & {"cfg.json", "config.json", "clt_cfg.json", "config.yaml"}
        ),
    ),
    Layout("circuit-tracer-clt", "W_enc_0.safetensors and W_dec_0.safetensors", _CLT_LAYER),
    Layout("gemmascope2-clt", "params_layer_0.safetensors", _GEMMA_CLT_LAYER),
    Layout("clt-forge", "clt_cfg.json and clt_weights.safetensors", _any(r"clt_cfg\.json|clt_weights\.safetensors")),
    Layout(
        "crosslayer-coding",
        "cfg.json and model.safetensors or clt_checkpoint_latest.safetensors",
        lambda names: "cfg.json" in names and bool(names & {"model.safetensors", "clt_checkpoint_latest.safetensors"}),
    ),
    Layout(
        "crosslayer-transcoder",
        "config.yaml and checkpoint.safetensors",
        _all("config.yaml", "checkpoint.safetensors"),
    ),
    Layout(
        "llamascopium",
        "config.json and sae_weights.safetensors",
        lambda names: {"config.json", "sae_weights.safetensors"} <= names and "cfg.json" not in names,
    ),
)
# Files of one layer among several.
PARTS = {"pullback": _LAYER, "circuit-tracer-clt": _CLT_LAYER, "gemmascope2-clt": _GEMMA_CLT_LAYER}
READABLE = tuple(layout.name for layout in LAYOUTS)


def recognise(path: str | os.PathLike[str]) -> str:
    """Name of the layout at a folder or file: one of `READABLE`.

    Files in the folder itself come first; only if none shows a layout, folders below it are looked at.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no layout or several fit; the sentence names them.
    """
    path = Path(path)
    if path.is_file():
        return _recognise_file(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"no {path}; a transcoder set is a directory with config.yaml and layer_*.safetensors, or another layout "
            f"that can be read: {', '.join(READABLE)}"
        )
    for level in _levels(path):
        found = {layout.name: layout for names in level for layout in LAYOUTS if layout.matches(names)}
        if len(found) > 1:
            said = "; ".join(f"{layout.name} ({layout.shown_by})" for layout in found.values())
            raise ValueError(f"{path} fits {len(found)} layouts: {said}. Say which with format=")
        if found:
            return next(iter(found))
    loose = sorted(path.glob("*.safetensors"))
    if loose:
        raise ValueError(_loose(loose[0]))
    layouts = "; ".join(f"{layout.name}: {layout.shown_by}" for layout in LAYOUTS)
    raise ValueError(f"{path} has no layout that is known here. Known are {layouts}")


def _recognise_file(file: Path) -> str:
    """A file goes by the folder it lies in, since its settings lie beside it."""
    if file.name == "params.npz" or (file.suffix == ".npz"):
        return "gemmascope"
    if file.suffix == ".pt" and file.name != "ae.pt":
        return "transcoder_circuits"
    beside = set(os.listdir(file.parent))
    found = [
        layout
        for layout in LAYOUTS
        if layout.matches(beside) and not layout.matches(beside - {file.name}) or _is_layer_of(layout, file, beside)
    ]
    if len(found) == 1:
        return found[0].name
    if file.suffix == ".safetensors":
        raise ValueError(_loose(file))
    raise ValueError(f"{file} has no layout that is known here; known are {', '.join(READABLE)}")


def _is_layer_of(layout: Layout, file: Path, beside: set[str]) -> bool:
    return layout.name in PARTS and layout.matches(beside) and PARTS[layout.name]({file.name})


def _levels(path: Path) -> list[list[set[str]]]:
    """Names of the files in the folder, then in the folders one below, and so on."""
    levels: list[list[set[str]]] = []
    folders = [path]
    for _ in range(DEPTH):
        entries = [sorted(os.scandir(folder), key=lambda entry: entry.name) for folder in folders]
        levels.append([{entry.name for entry in level if entry.is_file()} for level in entries])
        folders = [
            Path(entry.path)
            for level in entries
            for entry in level
            if entry.is_dir() and not entry.name.startswith(".") and entry.name != "features"
        ]
    return levels


def _loose(file: Path) -> str:
    tensors = read_safetensors(file)
    fits = fitting(tensors)
    shapes = {name: list(tensor.shape) for name, tensor in sorted(tensors.items())[:8]}
    if not fits:
        return f"{file} fits no layout that is known here ({', '.join(c.name for c in CONVENTIONS)}): it holds {shapes}"
    which = f"the tensors of {fits[0]}" if len(fits) == 1 else f"{len(fits)} layouts: {' and '.join(fits)}"
    return (
        f"{file} has no settings beside it, and fits {which}; tensors alone do not say the layer, the hooks and the "
        "activation: put it beside the settings it was saved with"
    )
