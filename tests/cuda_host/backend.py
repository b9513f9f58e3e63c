"""The CUDA backend on top of any build of its compiled module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_COMPILED = "pullback._cuda"
_BACKEND = "pullback.ops.cuda"  # and the modules in it


def load_backend(path: Path) -> ModuleType:
    """`pullback.ops.cuda`, imported afresh over the compiled module at `path`. Nobody else sees it."""
    # A name of its own: pybind11 gives back the module that it made under a name before.
    spec = importlib.util.spec_from_file_location("tests.cuda_host._cuda", path)
    assert spec is not None
    assert spec.loader is not None
    compiled = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compiled)
    importlib.import_module("pullback.ops")
    before = _forget()
    try:
        sys.modules[_COMPILED] = compiled
        return importlib.import_module(_BACKEND)
    finally:
        _forget()
        for name, module in before.items():
            sys.modules[name] = module
            setattr(_parent(name), name.rpartition(".")[2], module)


def _parent(name: str) -> ModuleType:
    return sys.modules[name.rpartition(".")[0]]


def _forget() -> dict[str, ModuleType]:
    """Takes the backend's modules out of sys.modules and of the packages that hold them."""
    names = sorted(name for name in sys.modules if name == _COMPILED or name.startswith(_BACKEND))
    for name in reversed(names):
        vars(_parent(name)).pop(name.rpartition(".")[2], None)
    return {name: sys.modules.pop(name) for name in names}
