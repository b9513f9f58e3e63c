"""Atomic writes: old content or new content, nothing between and nothing left behind."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from pullback._util import atomic
from pullback._util.atomic import (
    atomic_directory,
    atomic_path,
    atomic_save,
    atomic_write,
    must_be_writable,
    previous_directory,
)

FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


def fail_on_call(monkeypatch, name, error, call=1):
    """Let the `call`-th and every later call of os.<name> raise."""
    original, count = getattr(os, name), 0

    def failing(*args, **kwargs):
        nonlocal count
        count += 1
        if count >= call:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(os, name, failing)


def write_file(path, data, error=None):
    with atomic_write(path) as file:
        file.write(data)
        if error:
            raise error


def write_set(path, content, names=("b.bin", "a.bin"), error=None):
    def owned(name):
        return name.endswith(".bin") or name == "manifest"

    with atomic_directory(path, manifest="manifest", owned=owned) as staging:
        for name in (*names, "manifest"):
            (staging / name).write_text(content)
        if error:
            raise error


def read(path):
    return {entry.name: entry.read_text() for entry in path.iterdir() if entry.is_file()}


def test_new_content_appears_only_at_the_end_and_parents_are_made(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    with atomic_write(path, "w") as file:
        file.write("ä")
        assert not path.exists()
    assert path.read_bytes() == "ä".encode()
    atomic_save(path, b"bytes")
    assert path.read_bytes() == b"bytes"
    assert os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [FULL_DISK, KeyboardInterrupt()], ids=["full disk", "ctrl-c"])
@pytest.mark.parametrize("where", ["fsync", "replace", "body"])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary(tmp_path, monkeypatch, where, error):
    path = tmp_path / "file"
    atomic_save(path, "old")
    if where != "body":
        fail_on_call(monkeypatch, where, error)
    with pytest.raises(type(error)):
        write_file(path, b"new" * 100, error if where == "body" else None)
    monkeypatch.undo()
    assert read(tmp_path) == {"file": "old"}


def test_mode_of_the_old_file_is_kept_and_new_files_follow_the_umask(tmp_path):
    path = tmp_path / "file"
    mask = os.umask(0o027)
    try:
        atomic_save(path, "1")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    atomic_save(path, "2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_symbolic_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    atomic_save(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_atomic_path_serves_writers_that_open_the_file_themselves(tmp_path):
    with atomic_path(tmp_path / "x.bin") as temporary:
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"1")
    assert read(tmp_path) == {"x.bin": "1"}


def test_what_cannot_be_written_is_said_before_and_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for fine in ("new", "a/b/new", "file", "."):
        must_be_writable(tmp_path / fine)
    for under in ("file/new", "file/a/new"):
        with pytest.raises(NotADirectoryError) as stopped:
            must_be_writable(tmp_path / under)
        assert stopped.value.filename == str(tmp_path / under)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError):
        must_be_writable(tmp_path / "new")
    with pytest.raises(FileNotFoundError) as stopped, atomic_path(tmp_path / "new") as temporary:
        temporary.read_bytes()
    assert stopped.value.filename == str(tmp_path / "new"), "not a temporary name"


def test_append_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rewritten whole"), atomic_write(tmp_path / "x", "a"):
        pass


def test_a_directory_is_replaced_whole_and_stale_files_vanish(tmp_path):
    target = tmp_path / "set"
    write_set(target, "old", names=("a.bin", "stale.bin"))
    write_set(target, "new", names=("a.bin",))
    assert read(target) == {"a.bin": "new", "manifest": "new"}
    assert os.listdir(tmp_path) == ["set"]


def test_files_of_others_survive_a_rewrite(tmp_path):
    target = tmp_path / "set"
    write_set(target, "old", names=("a.bin", "stale.bin"))
    (target / "notes").mkdir()
    (target / "README").write_text("mine")
    write_set(target, "new", names=("a.bin",))
    assert read(target) == {"a.bin": "new", "manifest": "new", "README": "mine"}
    assert sorted(os.listdir(target)) == ["README", "a.bin", "manifest", "notes"]


def test_the_working_directory_itself_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_set(".", "old")
    write_set(".", "new")
    assert read(tmp_path) == {"a.bin": "new", "b.bin": "new", "manifest": "new"}
    assert os.path.samefile(os.curdir, tmp_path)


@pytest.mark.parametrize("foreign", [False, True], ids=["swap", "move"])
@pytest.mark.parametrize("error", [FULL_DISK, KeyboardInterrupt()], ids=["full disk", "ctrl-c"])
@pytest.mark.parametrize(("where", "call"), [("fsync", 1), ("fsync", 4), ("rename", 1), ("rename", 2), ("body", 1)])
def test_a_failed_directory_keeps_the_old_set(tmp_path, monkeypatch, where, call, error, foreign):
    target = tmp_path / "set"
    write_set(target, "old")
    expected = {"a.bin": "old", "b.bin": "old", "manifest": "old"}
    if foreign:
        (target / "README").write_text("mine")
        expected["README"] = "mine"
    original, count = getattr(os, where, None), 0

    def fail_once(*args, **kwargs):
        nonlocal count
        count += 1
        if count == call:
            raise error
        return original(*args, **kwargs)

    if where != "body":
        monkeypatch.setattr(os, where, fail_once)
    with pytest.raises(type(error)):
        write_set(target, "new", error=error if where == "body" else None)
    monkeypatch.undo()
    assert count >= call or where == "body"
    assert read(target) == expected
    assert os.listdir(tmp_path) == ["set"]
    assert len(os.listdir(target)) == len(expected)


@pytest.mark.parametrize("call", range(1, 7))
def test_moving_files_in_is_undone_wherever_it_stops(tmp_path, monkeypatch, call):
    write_set(tmp_path, "old")
    (tmp_path / "README").write_text("mine")
    original, count = os.rename, 0

    def fail_once(*args):
        nonlocal count
        count += 1
        if count == call:
            raise FULL_DISK
        return original(*args)

    monkeypatch.setattr(atomic.os, "rename", fail_once)
    with pytest.raises(OSError, match="No space"):
        write_set(tmp_path, "new")
    assert read(tmp_path) == {"a.bin": "old", "b.bin": "old", "manifest": "old", "README": "mine"}
    assert len(os.listdir(tmp_path)) == 4


def test_a_leftover_of_a_crashed_swap_is_removed_by_the_next_save(tmp_path):
    target = tmp_path / "set"
    write_set(target, "old")
    os.rename(target, previous_directory(target))
    write_set(target, "new")
    assert read(target)["manifest"] == "new"
    assert os.listdir(tmp_path) == ["set"]


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "set").write_text("file")
    with pytest.raises(NotADirectoryError, match="choose another path"):
        write_set(tmp_path / "set", "new")
    assert (tmp_path / "set").read_text() == "file"


@pytest.mark.parametrize("foreign", [False, True], ids=["swapped", "moved in"])
def test_folders_of_files_are_replaced_whole_and_synced(tmp_path, monkeypatch, foreign):
    def save(**folders):
        with atomic_directory(tmp_path / "set", manifest="", owned=lambda name: name.startswith("layer")) as staging:
            for name, text in folders.items():
                (staging / name).mkdir()
                (staging / name / "weights").write_text(text)

    save(layer0="old", layer1="old")
    if foreign:
        (tmp_path / "set" / "notes").write_text("mine")
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    save(layer1="new")
    entries = {path.relative_to(tmp_path / "set").as_posix() for path in (tmp_path / "set").rglob("*")}
    assert entries == {"layer1", "layer1/weights"} | ({"notes"} if foreign else set())
    assert (tmp_path / "set" / "layer1" / "weights").read_text() == "new"
    assert len(synced) == 4, "the file, its folder, the staging folder, and the folder it was renamed into"
