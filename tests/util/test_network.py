"""Whether there is a way to the hub."""

from __future__ import annotations

import socket

import pytest

from pullback._util import network


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_host_that_listens_can_be_reached_and_one_that_does_not_cannot() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert network.reachable(address)
    assert not network.reachable(address)
    assert not network.reachable("https://")


def test_behind_a_proxy_the_proxy_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("asked past the proxy"))
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert network.reachable("https://huggingface.co")


@pytest.mark.parametrize(("found", "why"), [(True, None), (False, "https://huggingface.co cannot be reached")])
def test_the_client_is_offline_while_there_is_no_way(
    found: bool, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr(network, "reachable", lambda _: found)
    with network.asking_the_hub() as said:
        assert (said, constants.HF_HUB_OFFLINE) == (why, not found)
    assert constants.HF_HUB_OFFLINE is False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with network.asking_the_hub() as said:
        assert said == "HF_HUB_OFFLINE is set"
