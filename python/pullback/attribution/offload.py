"""One prompt's local model in temporary files, for graphs beside which it does not fit into memory."""

from __future__ import annotations

from pullback.attribution.heads import Heads
from pullback.attribution.local import LocalModel
from pullback.lens import on_disk


def out_of_memory(local: LocalModel) -> LocalModel:
    """The same with everything large in temporary files, of which a sweep reads one layer at a time; where the prompt
    was read on another device than the CPU, as it is."""
    filed = on_disk(local)
    filed.stack.heads = [_filed(heads) for heads in filed.stack.made_heads()]
    return filed


def _filed(heads: Heads) -> Heads:
    for name in ("from_v", "to_z", "mixing"):
        setattr(heads, name, on_disk(getattr(heads, name)))
    return heads
