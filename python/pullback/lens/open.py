"""Opening a model by directory or hub id."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pullback._util.network import asking_the_hub


def open_transformers(name: str) -> Any:
    """A `TransformerBridge` on a local directory or hub id, its weights as stored.

    Raises ValueError where neither can be had; the sentence says what was tried.
    """
    from transformer_lens.model_bridge import TransformerBridge

    local = Path(name).exists()
    with nullcontext() if local else asking_the_hub() as offline:
        try:
            return TransformerBridge.boot_transformers(name)
        except Exception as error:  # whatever the hub client, the network or the files raise, it means the same here
            why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            if local:
                raise ValueError(f"the model in '{name}' cannot be opened: {why}") from error
            if offline:
                raise ValueError(
                    f"no model '{name}': there is no such folder, and as a hub id it is not in the cache while "
                    f"{offline} ({why}); download it where there is a network and pass the folder"
                ) from error
            raise ValueError(f"no model '{name}': there is no such folder, and the hub gave none ({why})") from error
