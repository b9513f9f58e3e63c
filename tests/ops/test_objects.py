"""What the linker may not do: share one instruction set's code with another's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pullback import _C

ROOT = Path(__file__).parents[2]
OBJECTS = sorted((ROOT / "build").glob("**/kernels_*.cpp.o"))


@pytest.mark.skipif(not OBJECTS or not shutil.which("nm"), reason="no build directory here")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.name)
def test_kernels_have_no_weak_symbols(path: Path) -> None:
    """A weak symbol may be merged to the copy of the widest set, which kills older CPUs with SIGILL."""
    symbols = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout.splitlines()
    assert any("pullback::kernels_" in line for line in symbols)
    assert [line for line in symbols if line.split()[-2:-1] in (["W"], ["V"], ["u"]) or " W " in line] == []


@pytest.mark.skipif(not shutil.which("readelf"), reason="no readelf here")
def test_the_module_needs_no_torch_and_the_shared_openmp() -> None:
    dynamic = subprocess.run(["readelf", "-d", _C.__file__], capture_output=True, text=True, check=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert not [name for name in needed if "torch" in name or "c10" in name]
    if _C.openmp:
        assert "libgomp.so.1" in needed
