"""Compiles the CUDA module for the CPU, with the headers beside this file in place of CUDA's.

The same kernels then run on host memory, every GPU thread a fiber (fibers.h). Only speed is not the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = sorted((ROOT / "kernels" / "cuda").glob("*.cu"))
HEADERS = sorted([*(ROOT / "kernels" / "cuda").glob("*.h"), *HERE.glob("*.h")])
FLAGS = ["-std=c++17", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


def compiler() -> str | None:
    """g++, or None where it or pybind11 is missing."""
    try:
        import pybind11  # noqa: F401
    except ImportError:
        return None
    return shutil.which("g++")


def build(*, sanitize: bool = False) -> Path:
    """The path of the host module, compiled unless the same sources were compiled before.

    sanitize: with AddressSanitizer; the Python that loads it needs libasan preloaded.
    """
    import pybind11

    gcc = compiler()
    assert gcc is not None
    extra = ["-fsanitize=address", "-fno-omit-frame-pointer"] if sanitize else []
    includes = [f"-I{path}" for path in (HERE, pybind11.get_include(), sysconfig.get_path("include"))]
    version = subprocess.run([gcc, "--version"], capture_output=True, text=True, check=True).stdout
    contents = [path.read_bytes() for path in (*SOURCES, *HEADERS)]
    state = repr((version, FLAGS, extra, includes, [path.name for path in SOURCES])).encode() + b"".join(contents)
    module = ROOT / "build" / "cuda_host" / hashlib.sha256(state).hexdigest()[:16] / "_cuda.so"
    if module.exists():
        return module
    module.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=module.parent) as scratch:

        def compile_one(source: Path) -> Path:
            # What binds to Python is most of the time to compile, and none of the time to run.
            level = "-O0" if "pybind11" in source.read_text() or "host.h" in source.read_text() else "-O1"
            out = Path(scratch) / f"{source.stem}.o"
            run([gcc, *FLAGS, level, *extra, *includes, "-x", "c++", "-c", str(source), "-o", str(out)])
            return out

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, SOURCES))
        linked = Path(scratch) / "_cuda.so"
        run([gcc, "-shared", *extra, "-o", str(linked), *map(str, objects)])
        os.replace(linked, module)
    return module


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
