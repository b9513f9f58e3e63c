"""Models whose blocks lie on several devices, or that accelerate keeps on the CPU or on disk until they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def at_hand(*parts: Any) -> Iterator[None]:
    """Inside, the weights of these modules can be read, also where a `device_map` keeps them away ("cpu", "disk")."""
    with ExitStack() as stack:
        for module in {id(m): m for part in parts for m in _modules(part)}.values():
            hook = getattr(module, "_hf_hook", None)
            if getattr(hook, "offload", False):
                from accelerate.utils import align_module_device

                stack.enter_context(align_module_device(module))
        yield


def _modules(part: Any) -> Iterator[torch.nn.Module]:
    """Of a bridge also what it wraps, which stands outside its tree."""
    for module in part.modules() if isinstance(part, torch.nn.Module) else ():
        yield module
        wrapped = getattr(module, "original_component", None)
        if isinstance(wrapped, torch.nn.Module):
            yield from wrapped.modules()
