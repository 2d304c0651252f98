# SPDX-License-Identifier: Apache-2.0
"""The system's calls of a save, on systems that lack them or refuse them."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from addons import files
from spec_tests.harness.kill import can_exchange
from spec_tests.meta.forks import in_a_fork


def test_small_pieces_are_written_together(tmp_path):
    # The LoRA of many experts is tens of thousands of tensors of a few kB.
    with files.new_file(tmp_path / "new") as file:
        for _ in range(4):
            file.write(bytes(200_000))
        assert (tmp_path / "new").stat().st_size == 0
    assert (tmp_path / "new").stat().st_size == 800_000


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere"), lambda _path: None])
def test_tree_is_removed_whatever_it_is(tmp_path, make):
    make(tmp_path / "one")
    files.remove_tree(tmp_path / "one")
    assert not os.path.lexists(tmp_path / "one")


def test_system_that_cannot_exchange_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(OSError, match="renameat2") as caught:
        files.exchange(tmp_path, tmp_path)
    assert caught.value.errno == errno.ENOSYS


def test_relative_names_change_places(tmp_path, monkeypatch):
    if not can_exchange(tmp_path):
        pytest.skip("directories cannot change places here")  # macOS, NFS: nothing to exchange by
    monkeypatch.chdir(tmp_path)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    files.exchange(Path("one"), Path("other"))
    assert ((tmp_path / "one" / "other").exists(), (tmp_path / "other" / "one").exists()) == (True, True)


def test_exchange_that_fails_names_both(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        files.exchange(tmp_path / "one", tmp_path / "other")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "one"), str(tmp_path / "other"))


def test_lock_is_held_once(tmp_path):
    with files.lock(tmp_path / "lock"):
        assert files.lock(tmp_path / "lock") is None
    with files.lock(tmp_path / "lock") as file:
        assert not file.closed


@pytest.mark.parametrize(("code", "works"), [(errno.ENOLCK, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_disk_without_locks_is_saved_to_and_a_broken_one_is_not(tmp_path, monkeypatch, code, works):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    if works:
        with files.lock(tmp_path / "lock") as file:
            assert not file.closed
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            files.lock(tmp_path / "lock")


def test_system_without_locks_is_saved_to(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with files.lock(tmp_path / "lock") as file:
        assert not file.closed


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
@pytest.mark.parametrize(("mode", "may"), [(0o777, True), (0o555, False), (0o666, False)])
def test_rights_are_those_the_process_acts_with(tmp_path, mode, may):
    def ask():
        os.chdir(tmp_path)  # nobody else may enter what is above it
        if os.geteuid() == 0:
            os.seteuid(65534)  # it stays root's by its real id
        return int(files.may_write(Path("place")))

    tmp_path.chmod(0o755)
    (tmp_path / "place").mkdir()
    (tmp_path / "place").chmod(mode)
    assert in_a_fork(ask, tmp_path / "output") == may


def test_working_directory_that_is_gone_is_no_directory(tmp_path):
    def work():
        gone = tmp_path / "gone"
        gone.mkdir()
        os.chdir(gone)
        inside = files.is_working_directory(tmp_path)
        gone.rmdir()
        return int(not inside or files.is_working_directory(tmp_path))

    assert in_a_fork(work, tmp_path / "output") == 0


def test_mounts_are_seen_without_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    assert files.has_mounts(Path("/"))
    assert not files.has_mounts(tmp_path)


def test_mounts_are_seen_on_a_directory_and_below_it(monkeypatch):
    line = b"36 35 98:0 / %s rw,noatime master:1 - ext4 /dev/root rw\n"
    points = [b"/", b"/out/ad\\040apter/logs", b"/models"]
    monkeypatch.setattr(Path, "read_bytes", lambda _path: b"".join(line % point for point in points))
    seen = [files.has_mounts(Path(place)) for place in ("/out/ad apter/logs", "/out/ad apter", "/out", "/models")]
    assert seen == [True] * 4
    assert not any(files.has_mounts(Path(place)) for place in ("/out/adapter", "/models/mine", "/mod"))
