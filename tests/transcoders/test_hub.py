"""References to the hub: what they mean, and what is said where there is no network. Nothing here downloads."""

from __future__ import annotations

import socket
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from pullback.transcoders import TopK, TranscoderSet, hub, load_transcoders


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/repo", ("owner/repo", "", None)),
        ("owner/repo@v1", ("owner/repo", "", "v1")),
        ("owner/repo/sub/folder@main", ("owner/repo", "sub/folder", "main")),
        ("hf://owner/repo", ("owner/repo", "", None)),
        ("hf://owner/repo/sub@abc", ("owner/repo", "sub", "abc")),
        ("hf://owner/repo/layer_0.safetensors?revision=abc", ("owner/repo", "layer_0.safetensors", "abc")),
        ("gemma", ("mwhanna/gemma-scope-transcoders", "", None)),
        ("llama", ("mntss/transcoder-Llama-3.2-1B", "", None)),
        (("owner/repo", "layers.3"), ("owner/repo", "layers.3", None)),
        (
            ("gemma-scope-2b-pt-transcoders", "layer_0/width_16k/average_l0_76"),
            ("google/gemma-scope-2b-pt-transcoders", "layer_0/width_16k/average_l0_76", None),
        ),
        (
            ("gemma-scope-2-1b-pt-transcoders-all", "layer_0_width_16k_l0_small"),
            ("google/gemma-scope-2-1b-pt", "transcoder_all/layer_0_width_16k_l0_small", None),
        ),
    ],
    ids=str,
)
def test_every_spelling_is_understood(text, expected):
    assert hub.parse(text) == hub.Reference(*expected)


@pytest.mark.parametrize("text", ["folder", "./owner/repo", "/owner/repo", "../a/b", "a b/c", ""])
def test_paths_are_not_references(text):
    assert hub.parse(text) is None


def test_what_begins_like_a_reference_and_is_none_is_refused():
    with pytest.raises(ValueError, match='"hf://owner" is not a hub reference; write hf://owner/repo'):
        hub.parse("hf://owner")
    with pytest.raises(ValueError, match=r"a pair must be \(SAELens release, SAE id\)"):
        hub.parse(("a", "b", "c"))


def test_releases_are_looked_up_in_an_installed_saelens_without_importing_it(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="release 'mine' .* give its repository instead"):
        hub.parse(("mine", "layer_3"))
    (tmp_path / "sae_lens").mkdir()
    (tmp_path / "sae_lens" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "sae_lens" / "pretrained_saes.yaml").write_text(
        "mine:\n  repo_id: owner/repo\n  saes:\n  - id: layer_3\n    path: deep/layer_3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert hub.parse(("mine", "layer_3")) == hub.Reference("owner/repo", "deep/layer_3")
    with pytest.raises(ValueError, match="release 'mine' has no SAE 'layer_4'; it has layer_3"):
        hub.parse(("mine", "layer_4"))


@pytest.fixture
def remote(make, tmp_path, monkeypatch):
    """A repository with a set in `sub`, and the list of what was asked of the client."""
    sets = TranscoderSet({0: make(TopK(5))})
    sets.save(tmp_path / "remote" / "sub")
    asked = []

    def snapshot(repo_id, revision=None, allow_patterns=None):
        asked.append((repo_id, revision, allow_patterns))
        return str(tmp_path / "remote")

    def one_file(repo_id, path, revision=None):
        asked.append((repo_id, revision, path))
        if not (tmp_path / "remote" / path).is_file():
            raise LocalEntryNotFoundError(path)
        return str(tmp_path / "remote" / path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one_file)
    return sets, asked


def test_a_reference_is_downloaded_and_read(remote, x):
    sets, asked = remote
    loaded = load_transcoders("owner/repo/sub@v1")
    assert torch.equal(loaded[0](x), sets[0](x))
    ((repo_id, revision, patterns),) = asked
    assert (repo_id, revision) == ("owner/repo", "v1")
    assert "sub/config.yaml" in patterns
    assert not any("features" in pattern or pattern.endswith("*") for pattern in patterns)
    with pytest.raises(FileNotFoundError, match="the repository has no elsewhere"):
        load_transcoders("owner/repo/elsewhere")


def test_one_file_of_a_repository(remote, tmp_path):
    torch.save({"cfg": {}, "state_dict": {}}, tmp_path / "remote" / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt: not the layout of transcoder_circuits"):
        load_transcoders("hf://owner/repo/x.pt")
    assert remote[1][0] == ("owner/repo", None, "x.pt")


def test_one_layer_of_a_set_comes_with_its_configuration(remote, x):
    sets, asked = remote
    loaded = load_transcoders("owner/repo/sub/layer_0.safetensors")
    assert torch.equal(loaded[0](x), sets[0](x))
    assert ("owner/repo", None, "sub/config.yaml") in asked


def test_a_local_folder_comes_before_a_repository_of_that_name(remote, make, x, tmp_path, monkeypatch):
    local = TranscoderSet({0: make(TopK(3), seed=9)})
    local.save(tmp_path / "owner" / "repo")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(load_transcoders("owner/repo")[0](x), local[0](x))
    assert not remote[1]


def test_the_whole_of_gemma_scope_is_not_downloaded(remote):
    with pytest.raises(ValueError, match="holds many dictionaries for each layer; name one"):
        load_transcoders("google/gemma-scope-2b-pt-transcoders")
    assert not remote[1]


@pytest.mark.parametrize("reference", ["owner/not-there", "hf://owner/not-there/layer_0.safetensors", "llama"])
def test_offline_is_said_and_no_connection_tried(reference, monkeypatch, tmp_path):
    def connect(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="not in the cache while HF_HUB_OFFLINE is set; download it where"):
        load_transcoders(reference)


def test_an_unreachable_hub_is_said(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("pullback._util.network.reachable", lambda _: True)  # and then the connection breaks off
    with pytest.raises(FileNotFoundError, match=r"while the hub cannot be reached \(ConnectionError\)"):
        load_transcoders("owner/repo")


@pytest.mark.parametrize("reference", ["owner/not-there", "hf://owner/not-there/layer_0.safetensors"])
def test_without_a_network_nothing_is_tried_again(reference, monkeypatch, tmp_path):
    """The client alone would try five times, for 20 s and more."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("pullback._util.network.reachable", lambda _: False)
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"not in the cache while https://\S+ cannot be reached; download it"):
        load_transcoders(reference)
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False, "as it was"


def test_local_files_need_no_hub_client(make, tmp_path):
    TranscoderSet({0: make(TopK(5))}).save(tmp_path / "tc")
    script = f"""
import sys
sys.modules["huggingface_hub"] = None
from pullback.transcoders import load_transcoders
load_transcoders({str(tmp_path / "tc")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True)


class Api:
    """What is asked of the hub's client."""

    calls: list = []

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, **options):
        self.calls.append((repo_id, options))

    def upload_folder(self, *, folder_path, **options):
        self.calls.append((sorted(file.name for file in folder_path.iterdir()), options))
        return "https://hub/commit"


def test_push_saves_in_a_layout_and_uploads(make, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "calls", [])
    sets = TranscoderSet({1: make(TopK(5), d_in=11)})
    options = {"private": True, "revision": "v2", "token": "secret", "hookpoint": "h.{layer}.mlp"}
    assert sets.push_to_hub("owner/mine", "sparsify", **options) == "https://hub/commit"
    token, made, (names, uploaded) = Api.calls
    assert token == ("token", "secret")
    assert made == ("owner/mine", {"private": True, "exist_ok": True})
    assert names == ["h.1.mlp"]
    assert (uploaded["repo_id"], uploaded["revision"]) == ("owner/mine", "v2")
    with pytest.raises(ValueError, match="pass calibrate="):
        sets.push_to_hub("owner/mine", "saelens")
    assert len(Api.calls) == 3, "nothing is made on the hub for a set that cannot be saved"
