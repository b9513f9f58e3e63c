"""Writes that either happen completely or not at all.

A file is written under a temporary name in its own directory, flushed and synced to disk, then renamed over the target:
readers see the old content or the new one. Whatever stops the write (a full disk, Ctrl-C, an exception of the caller)
removes the temporary file and leaves the old content where it was.

    with atomic_write("run/report.json", "w") as file: json.dump(report, file)
    atomic_save("run/report.json", text_or_bytes)

`atomic_path` is for libraries that open the file themselves, `atomic_directory` for several files that belong together:

    with atomic_path("run/weights.safetensors") as temporary: save_file(tensors, temporary)
    with atomic_directory("run/set", manifest="config.yaml", owned=is_ours) as staging: ...
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

__all__ = [
    "atomic_directory",
    "atomic_path",
    "atomic_save",
    "atomic_write",
    "must_be_writable",
    "previous_directory",
    "sync_directory",
    "sync_file",
]


def sync_file(path: str | os.PathLike[str], *, keep_cached: bool = True) -> None:
    """Force the content of a file to disk. Without `keep_cached` the system may forget it, where it takes advice."""
    # Windows can only sync a handle that is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if not keep_cached and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Force the names in a directory (so: a rename) to disk; nothing to do on Windows, where directories cannot be
    opened."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _resolved(path: str | os.PathLike[str]) -> Path:
    # A rename would replace a symbolic link by a file; the user meant the thing it points to.
    return Path(os.path.realpath(path))


def _temporary_sibling(path: Path) -> Path:
    # Own names instead of tempfile's: mkstemp forces mode 0600, while an exclusive open under this name follows the
    # umask.
    return path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"


def must_be_writable(path: str | os.PathLike[str]) -> None:
    """Raise now the OSError that writing a file or a folder there would end in, where folders or rights are the reason:
    before a long run and not after it."""
    target = _resolved(path)
    folder = next(p for p in (target, *target.parents) if p.is_dir())
    missing = [p for p in target.parents if not p.is_dir()]
    if any(p.exists() for p in missing):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, one_of_many: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `path`; what is written there becomes `path` when the block ends well.

    Parent directories are created. The mode of an existing file is kept. After files that are each
    `one_of_many` the caller does `sync_directory`: should the machine die before, some of them may still have their old
    content. They take no memory of the system once they are on disk: thousands that nobody reads soon would drive out
    what is read, and fresh memory is slow to write to.

    Raises: OSError of the file system (full disk, permissions); `path` then still holds its old content.
    """
    target = _resolved(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(target)
    try:
        yield temporary
        with suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        sync_file(temporary, keep_cached=not one_of_many)
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == os.fspath(temporary):
            error.filename = os.fspath(path)  # the name that the caller knows
        raise
    if not one_of_many:
        sync_directory(target.parent)


@contextmanager
def atomic_write(
    path: str | os.PathLike[str],
    mode: str = "wb",
    *,
    encoding: str | None = None,
    newline: str | None = None,
    one_of_many: bool = False,
) -> Iterator[IO[Any]]:
    """Open `path` for writing ("wb" or "w"; text is UTF-8 unless told otherwise); the file appears only when the block
    ends well. `one_of_many` as of `atomic_path`."""
    if mode not in ("wb", "w"):
        raise ValueError(f'atomic_write: mode must be "wb" or "w" (a file is always rewritten whole), got {mode!r}')
    if mode == "w" and encoding is None:
        encoding = "utf-8"
    with (
        atomic_path(path, one_of_many=one_of_many) as temporary,
        open(temporary, mode.replace("w", "x"), encoding=encoding, newline=newline) as file,
    ):
        yield file
        file.flush()


def atomic_save(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write bytes, or text as UTF-8 with its line ends untouched, atomically."""
    with atomic_write(path, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)


def previous_directory(path: str | os.PathLike[str]) -> Path:
    """Where `atomic_directory` keeps the old directory for the instant of the swap. It outlives the swap only if the
    machine dies there."""
    target = _resolved(path)
    return target.parent / f".{target.name}.previous"


@contextmanager
def atomic_directory(path: str | os.PathLike[str], *, manifest: str, owned: Callable[[str], bool]) -> Iterator[Path]:
    """Yield an empty staging directory whose files, and folders of files, together replace the owned entries of
    directory `path` when the block ends well.

    `owned(name)` says which entries of `path` belong to the set that is rewritten; they vanish if the new set lacks
    them, all others stay. `manifest` is the file a reader opens first, so it is the last to appear; "" if none is.
    A directory with owned entries only is swapped as a whole by two renames. One that also holds other things, or that
    cannot be renamed (the working directory, a mount point), gets its files moved in one by one, undone if a move
    fails.

    Raises: OSError of the file system; NotADirectoryError if `path` is a file. The old files are then intact.
    """
    target = _resolved(path)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; a directory of files is written here: choose another path")
    target.parent.mkdir(parents=True, exist_ok=True)
    swap = not target.exists() or (all(owned(name) for name in os.listdir(target)) and _can_rename(target))
    staging = _temporary_sibling(target) if swap else target / f".{secrets.token_hex(6)}.tmp"
    try:
        staging.mkdir()
        yield staging
        for entry in staging.rglob("*"):
            (sync_directory if entry.is_dir() else sync_file)(entry)
        sync_directory(staging)
        if swap:
            _swap(staging, target)
        else:
            _move_in(staging, target, manifest, owned)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _can_rename(directory: Path) -> bool:
    working = Path(os.path.realpath(os.curdir))
    return not (os.path.ismount(directory) or directory == working or directory in working.parents)


def _swap(staging: Path, target: Path) -> None:
    previous = previous_directory(target)
    moved = False
    try:
        if target.exists():
            # Only while `target` stands is an older leftover certainly superfluous.
            shutil.rmtree(previous, ignore_errors=True)
            os.rename(target, previous)
            moved = True
        os.rename(staging, target)
    except BaseException:
        if moved and not target.exists():
            os.rename(previous, target)
        raise
    sync_directory(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _move_in(staging: Path, target: Path, manifest: str, owned: Callable[[str], bool]) -> None:
    incoming = sorted(staging.iterdir(), key=lambda entry: (entry.name == manifest, entry.name))
    outgoing = [target / name for name in sorted(os.listdir(target), key=lambda name: name != manifest) if owned(name)]
    aside = target / f".{secrets.token_hex(6)}.old.tmp"
    aside.mkdir()
    undo: list[tuple[Path, Path]] = []
    try:
        for source, destination in [(entry, aside / entry.name) for entry in outgoing] + [
            (e, target / e.name) for e in incoming
        ]:
            undo.append((destination, source))
            os.rename(source, destination)
    except BaseException:
        for source, destination in reversed(undo):
            if source.exists() and not destination.exists():
                os.rename(source, destination)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_directory(target)
    shutil.rmtree(aside, ignore_errors=True)
    staging.rmdir()
