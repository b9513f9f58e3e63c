"""Opening a model by directory or hub id."""

from __future__ import annotations

from typing import Any


def open_transformers(name: str) -> Any:
    """A `TransformerBridge` on a local directory or hub id, its weights as stored.

    Raises ValueError where neither can be had; the sentence says what was tried.
    """
    from transformer_lens.model_bridge import TransformerBridge

    try:
        return TransformerBridge.boot_transformers(name)
    except Exception as error:  # whatever the hub client, the network or the files raise, it means the same here
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"no model '{name}': it is no local directory that can be opened, and the hub gave none ({why[0]})"
        ) from error
