"""The CUDA backend on top of any build of its compiled module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pullback

_NAME = "pullback._cuda"


def load_backend(path: Path) -> ModuleType:
    """`pullback.ops._cuda`, imported afresh over the compiled module at `path`; what is imported already stays."""
    spec = importlib.util.spec_from_file_location(_NAME, path)
    assert spec is not None
    assert spec.loader is not None
    compiled = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compiled)
    ours = {name for name in sys.modules if name == _NAME or name.startswith("pullback.ops._cuda")}
    before = {name: sys.modules.pop(name) for name in ours}
    attribute = pullback.__dict__.pop("_cuda", None)  # `from pullback import _cuda` looks here first
    try:
        sys.modules[_NAME] = compiled
        return importlib.import_module("pullback.ops._cuda")
    finally:
        for name in [name for name in sys.modules if name == _NAME or name.startswith("pullback.ops._cuda")]:
            del sys.modules[name]
        sys.modules.update(before)
        if attribute is not None:
            pullback.__dict__["_cuda"] = attribute
