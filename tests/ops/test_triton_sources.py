"""What can be read off the sources of the Triton kernels without Triton."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

KERNELS = sorted((Path(__file__).resolve().parents[2] / "kernels" / "triton").glob("*.py"))


def compiled_in(source: Path) -> dict[str, list[str]]:
    """Of every kernel of a file, the parameters whose values are compiled in."""
    found = {}
    for f in ast.walk(ast.parse(source.read_text())):
        if isinstance(f, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in f.decorator_list):
            arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
            found[f.name] = [a.arg for a in arguments if a.annotation and "constexpr" in ast.unparse(a.annotation)]
    return found


@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_no_size_is_compiled_in(source: Path) -> None:
    """A number of rows, entries or slots as `tl.constexpr` compiles a kernel for every batch that a mask has thinned
    out, and for every step of a schedule of k. Only blocks and switches are, which are written in capitals."""
    for kernel, names in compiled_in(source).items():
        assert all(name.isupper() for name in names), f"{kernel}: {names}"


def test_kernels_are_found() -> None:
    names = {kernel: names for source in KERNELS for kernel, names in compiled_in(source).items()}
    assert "BLOCK_D" in names["decode_csr_kernel"]
