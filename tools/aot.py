"""Compile every Triton kernel ahead of time and report its registers, spills, shared memory, loads and matrix units.

    python tools/aot.py [--arch 80 90 100] [--json]

Needs triton, no GPU. Exits with 1 if a kernel does not compile, spills, asks for more shared memory than there is, or
lost the 16-byte loads, matrix units or bulk copies that its case promises. The kernels are read from this checkout,
installed or not.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).resolve().parents[1] / "kernels" / "triton"

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # what one block can have
MATRIX_UNITS = {80: "HMMA", 90: "HGMMA", 100: r"UTC\w*MMA"}  # as SASS names them


def kernel_cases() -> Iterator[Any]:
    """The AOT_CASES of every module in kernels/triton."""
    name = "pullback_triton_kernels"
    spec = importlib.util.spec_from_file_location(
        name, KERNELS / "__init__.py", submodule_search_locations=[str(KERNELS)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    for module in pkgutil.iter_modules([str(KERNELS)]):
        yield from getattr(importlib.import_module(f"{name}.{module.name}"), "AOT_CASES", [])


def cuobjdump() -> str:
    """The disassembler inside the triton wheel: no CUDA toolkit needed."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not path.exists():
        raise FileNotFoundError(f"aot: no cuobjdump at {path}; use a triton wheel from PyPI")
    return str(path)


def compile_case(case: Any, arch: int) -> dict[str, Any]:
    """Compile one case for ``sm_<arch>`` and read its resources back from the machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    position = {name: (i,) for i, name in enumerate(case.signature)}
    source = ASTSource(
        fn=case.kernel,
        signature=case.signature,
        constexprs=case.constexprs,
        attrs={position[name]: [["tt.divisibility", 16]] for name in case.divisible_by_16},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=case.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [cuobjdump(), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([cuobjdump(), "-sass", file.name], capture_output=True, text=True, check=True).stdout
    resource = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    return {
        "kernel": case.kernel.__name__,
        "case": case.label,
        "arch": f"sm_{arch}",
        "registers": resource["REG"],
        "spill_bytes": resource["STACK"] + resource["LOCAL"],
        "spill_instructions": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "shared_bytes": int(compiled.metadata.shared),
        "loads_16_bytes": len(re.findall(r"\bLDG\.E[.\w]*\.128\b", sass)),
        "matrix_instructions": len(re.findall(rf"\b{MATRIX_UNITS[arch]}\b", sass)) if arch in MATRIX_UNITS else 0,
        "bulk_loads": len(re.findall(r"\bUTMALDG\b", sass)),
        "shared_limit": SHARED_BYTES.get(arch),
        "wants_vector_loads": case.wants_vector_loads,
        "wants_hgmma": case.wants_hgmma and arch in MATRIX_UNITS,
        "wants_bulk_copies": case.wants_bulk_copies,
    }


def complaints(row: dict[str, Any]) -> list[str]:
    """What is wrong with a compiled case; empty if nothing is."""
    found = []
    if row["spill_bytes"] or row["spill_instructions"]:
        found.append("spills")
    if row["wants_vector_loads"] and not row["loads_16_bytes"]:
        found.append("no 16-byte loads")
    if row["wants_hgmma"] and not row["matrix_instructions"]:
        found.append("matrix units unused")
    if row["wants_bulk_copies"] and not row["bulk_loads"]:
        found.append("no bulk copies")
    if row["shared_limit"] and row["shared_bytes"] > row["shared_limit"]:
        found.append("too much shared memory")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--arch", type=int, nargs="+", default=[80, 90, 100], help="compute capabilities (default: 80 90 100)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler; unset it")

    failed = False
    for case in kernel_cases():
        for arch in arguments.arch:
            if arch not in case.archs:
                continue
            row = compile_case(case, arch)
            wrong = complaints(row)
            failed |= bool(wrong)
            if arguments.json:
                print(json.dumps(row | {"complaints": wrong}), flush=True)
            else:
                print(
                    f"{row['arch']:7} {row['kernel']:30} {row['case']:42} {row['registers']:4} regs  "
                    f"{row['spill_bytes']:4} B spilled  {row['shared_bytes']:6} B shared  "
                    f"{row['loads_16_bytes']:3} 16-byte loads  {row['matrix_instructions']:3} matrix  "
                    f"{row['bulk_loads']:2} bulk loads  {', '.join(wrong) or 'ok'}",
                    flush=True,
                )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
