"""References to the Hugging Face hub. Its client is imported, and the network asked, only when one is used."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

# circuit-tracer's short names.
PRESETS = {"gemma": "mwhanna/gemma-scope-transcoders", "llama": "mntss/transcoder-Llama-3.2-1B"}
# Releases of SAELens that are transcoders; others are looked up in SAELens where it is installed.
RELEASES = {
    "gemma-scope-2b-pt-transcoders": "google/gemma-scope-2b-pt-transcoders",
} | {
    f"gemma-scope-2-{size}-{kind}-transcoders{suffix}": f"google/gemma-scope-2-{size}-{kind}"
    for size in ("270m", "1b", "4b", "12b", "27b")
    for kind in ("pt", "it")
    for suffix in ("", "-all")
    if (size, kind, suffix) != ("27b", "pt", "")
}
MANY_TO_A_LAYER = re.compile(r"google/gemma-scope-.*")
WANTED = (
    "config.yaml",
    "config.json",
    "cfg.json",
    "layer_*.safetensors",
    "sae.safetensors",
    "sae_weights.safetensors",
    "params.safetensors",
    "params.npz",
    "ae.pt",
    "final_sparse_autoencoder_*.pt",
)
NAME = r"[A-Za-z0-9][\w.-]*"
REPOSITORY = re.compile(rf"({NAME}/{NAME})((?:/[^@]+)?)(?:@([^@]+))?")


@dataclass(frozen=True)
class Reference:
    """A folder or file of a hub repository."""

    repo_id: str
    path: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        return f"hf://{self.repo_id}{path}" + (f"@{self.revision}" if self.revision else "")

    @property
    def is_file(self) -> bool:
        return Path(self.path).suffix in (".safetensors", ".npz", ".pt")


def parse(reference: str | os.PathLike[str] | tuple[str, str]) -> Reference | None:
    """`owner/repo[/path][@revision]`, `hf://owner/repo[/path][@revision | ?revision=...]`, a short name of
    circuit-tracer, or a SAELens pair (release, id). None if it is none of them.

    Raises: ValueError for what begins like a reference and is not one, and for an unknown release.
    """
    if isinstance(reference, tuple):
        return _of_saelens(reference)
    text = os.fspath(reference)
    text = PRESETS.get(text, text)
    explicit = text.startswith("hf://")
    if explicit:
        parts = urlsplit(text)
        text = parts.netloc + parts.path.rstrip("/")
        if "revision" in (query := parse_qs(parts.query)):
            text = f"{text}@{query['revision'][0]}"
    match = REPOSITORY.fullmatch(text)
    if match is None or (not explicit and text.startswith((".", "/", "~"))):
        if explicit:
            raise ValueError(f'"{reference}" is not a hub reference; write hf://owner/repo[/folder][@revision]')
        return None
    return Reference(match[1], match[2].strip("/"), match[3])


def _of_saelens(pair: tuple[str, str]) -> Reference:
    if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise ValueError(f"a pair must be (SAELens release, SAE id), got {pair!r}")
    release, sae_id = pair
    if "/" in release:  # SAELens takes a repository in the place of a release, and its folder in that of the id
        return Reference(release, sae_id.strip("/"))
    if release in RELEASES:
        folder = "transcoder_all/" if release.endswith("-all") else "transcoder/" if "scope-2-" in release else ""
        return Reference(RELEASES[release], sae_id if sae_id.startswith(folder) else folder + sae_id)
    entry = _release(release)
    for sae in entry.get("saes") or []:
        if sae.get("id") == sae_id:
            return Reference(entry["repo_id"], str(sae.get("path", sae_id)))
    ids = [str(sae.get("id")) for sae in entry.get("saes") or []]
    raise ValueError(
        f"release {release!r} has no SAE {sae_id!r}; it has {', '.join(ids[:5])}{', ...' if ids[5:] else ''}"
    )


def _release(release: str) -> dict[str, Any]:
    """What SAELens's own list says of a release. The list is read as a file; SAELens is not imported."""
    import yaml

    spec = importlib.util.find_spec("sae_lens")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        file = Path(folder) / "pretrained_saes.yaml"
        if file.is_file():
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            entry = (yaml.load(file.read_text(encoding="utf-8"), Loader=loader) or {}).get(release)
            if isinstance(entry, dict):
                return entry
    where = "is not in the list of the SAELens installed here" if folders else "is looked up in SAELens, not installed"
    raise ValueError(
        f"release {release!r} {where}; give its repository instead: (owner/repo, folder), or owner/repo/folder"
    )


def fetch(reference: Reference) -> Path:
    """Local path of a referenced folder or file, downloaded unless it is in the hub's cache.

    Raises:
        FileNotFoundError: offline and not in the cache, or no such repository, revision or path.
        ValueError: the whole of a repository that holds many dictionaries a layer.
    """
    if not reference.path and MANY_TO_A_LAYER.fullmatch(reference.repo_id):
        raise ValueError(
            f"{reference} holds many dictionaries for each layer; name one: {reference}/layer_0/width_16k/average_l0_76"
        )
    from pullback._util.network import asking_the_hub

    with asking_the_hub() as offline:
        try:
            fetched = _file(reference) if reference.is_file else _folder(reference)
        except (OSError, ValueError) as error:  # what the client raises, offline and online
            raise FileNotFoundError(_why(reference, error, offline)) from error
    if not fetched.exists():
        raise FileNotFoundError(f"{reference}: the repository has no {reference.path} with weights that can be read")
    return fetched


def _file(reference: Reference) -> Path:
    import huggingface_hub

    file = huggingface_hub.hf_hub_download(reference.repo_id, reference.path, revision=reference.revision)
    for beside in () if reference.path.endswith(".npz") else ("config.yaml", "config.json", "cfg.json"):
        _also(reference, beside)
    return Path(file)


def _folder(reference: Reference) -> Path:
    import huggingface_hub

    prefix = f"{reference.path}/" if reference.path else ""
    patterns = [f"{prefix}{deeper}{name}" for name in WANTED for deeper in ("", "*/")]
    root = huggingface_hub.snapshot_download(reference.repo_id, revision=reference.revision, allow_patterns=patterns)
    return Path(root) / reference.path


def _also(reference: Reference, name: str) -> None:
    import huggingface_hub

    path = (Path(reference.path).parent / name).as_posix()
    try:
        huggingface_hub.hf_hub_download(reference.repo_id, path, revision=reference.revision)
    except (OSError, ValueError):
        return  # a file that is asked for if the layout needs it


def _why(reference: Reference, error: Exception, offline: str | None) -> str:
    kind = type(error).__name__
    if "RepositoryNotFound" in kind or "RevisionNotFound" in kind or "EntryNotFound" in kind and "Local" not in kind:
        first = str(error).strip().splitlines()[-1] if str(error).strip() else kind
        return f"{reference}: the hub has no such repository, revision or file, or you may not read it ({first})"
    return (
        f"no local path {str(reference).removeprefix('hf://')}, and as a hub reference it is not in the cache while "
        f"{offline or f'the hub cannot be reached ({kind})'}; download it where there is a network and pass the folder"
    )


def push(folder: Path, repo_id: str, *, private: bool, revision: str | None, token: str | None, message: str) -> str:
    """Upload a folder to a repository, made if there is none; returns the address of the commit."""
    import huggingface_hub

    api = huggingface_hub.HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message))
