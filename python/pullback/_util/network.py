"""The Hugging Face hub where there may be no network: its client would try again for half a minute, once a file."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

PATIENCE = 5.0  # seconds for a connection, after which a network counts as none


@contextmanager
def asking_the_hub() -> Iterator[str | None]:
    """Within it, the client finds what is in its cache and asks the hub for the rest, if there is a way to it; else it
    says at once what is missing. Gives the reason why the hub is not asked, None where it is."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield "HF_HUB_OFFLINE is set"
    elif reachable(constants.ENDPOINT):
        yield None
    else:
        constants.HF_HUB_OFFLINE = True  # what the client, and transformers, look at before every request
        try:
            yield f"{constants.ENDPOINT} cannot be reached"
        finally:
            constants.HF_HUB_OFFLINE = False


def reachable(address: str) -> bool:
    """Whether a connection to the host of a web address can be made; where a proxy would make it, that is assumed."""
    parts = urlsplit(address)
    if getproxies().keys() & {parts.scheme, "all"}:
        return True
    port = parts.port or {"https": 443}.get(parts.scheme, 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=PATIENCE):
            return True
    except OSError:
        return False
