"""What ahead-of-time compilation has to know about a kernel that a launch would tell it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AotCase:
    """One specialisation of a kernel, as the launcher would build it for real arguments.

    ``signature`` maps argument names, in order, to Triton types ("*fp32", "i64", "constexpr"); ``constexprs`` gives the
    compile-time values; ``divisible_by_16`` names the arguments whose value (or address) a launch would find divisible
    by 16, which is what turns scalar loads into 16-byte ones. A tensor descriptor is an argument of type
    "tensordesc<bf16[128, 64]>": element type and block.
    """

    label: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    divisible_by_16: tuple[str, ...]
    options: dict[str, int] = field(default_factory=dict)
    wants_vector_loads: bool = False
    wants_hgmma: bool = False  # the matrix units of its generation: HMMA on sm_80, HGMMA on sm_90, tcgen05 on sm_100
    wants_bulk_copies: bool = False  # tiles moved by the tensor memory accelerator, on sm_90 and later
    archs: tuple[int, ...] = (80, 90, 100)  # where this specialisation is ever launched
