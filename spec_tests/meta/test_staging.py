# SPDX-License-Identifier: Apache-2.0
"""What can happen between the steps by which a save is prepared, published and settled."""

from __future__ import annotations

import errno
import json
import os
import stat

import pytest

from addons import publishing, staging
from spec_tests.harness.export import snapshot


@pytest.fixture
def new(tmp_path):
    """A prepared checkpoint, whose weights only their owner may read, as safetensors writes them."""
    source = tmp_path / "staging" / "new"
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "weights").write_text("new")
    (source / "weights").chmod(0o600)
    return source


@pytest.fixture
def destination(tmp_path):
    """A directory with somebody's files, in a directory of theirs too."""
    place = tmp_path / "out"
    (place / "runs").mkdir(parents=True)
    (place / "runs" / "events").write_text("theirs")
    return place


def test_files_get_the_mode_of_new_ones(new, destination):
    publishing.publish(new, destination, marker="config.json")
    (destination / "plain").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in destination.iterdir() if path.is_file()}
    assert len(modes) == 1


def files_of(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("asked", "of", "moved"),
    [
        ("may_write", "another", False),
        ("may_write", "out/runs", True),
        ("may_write", "out", True),
        ("is_working_directory", "out", True),
        ("has_mounts", "out", True),
    ],
)
def test_directory_that_cannot_change_places_stays_where_it_is(new, destination, monkeypatch, asked, of, moved):
    inode, place = destination.stat().st_ino, destination.parent / of
    monkeypatch.setattr(publishing, asked, lambda path: (path == place) is not (asked == "may_write"))
    publishing.publish(new, destination, marker="config.json", whole=True)
    assert (destination.stat().st_ino == inode) is moved
    assert files_of(destination) == {"config.json", "weights", "runs/events"}


@pytest.mark.parametrize("name", ["weights", "config.json"])
def test_error_while_files_are_moved_is_raised_and_brings_the_earlier_ones_back(new, destination, monkeypatch, name):
    (destination / "config.json").write_text("earlier")
    before, move, full = snapshot(destination), publishing._move, OSError(errno.ENOSPC, "no space")

    def moved(source, target):
        if source == new / name:
            raise full
        move(source, target)

    monkeypatch.setattr(publishing, "_move", moved)
    with pytest.raises(OSError, match="no space") as caught:
        publishing.publish(new, destination, marker="config.json")
    assert caught.value is full
    publishing.settle(new.parent, destination)
    assert snapshot(destination) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_signal_right_after_the_exchange_loses_nobodys_files(new, destination, monkeypatch, error):
    (destination / "notes").write_text("mine")
    exchange = publishing.exchange

    def interrupted(one, other):
        exchange(one, other)
        raise error

    monkeypatch.setattr(publishing, "exchange", interrupted)
    with pytest.raises(error):
        publishing.publish(new, destination, marker="config.json", whole=True)
    publishing.settle(new.parent, destination)
    assert files_of(destination) == {"config.json", "weights", "notes", "runs/events"}


def test_journal_of_an_exchange_that_did_not_come_changes_nothing(new, destination):
    before, root = snapshot(destination), new.parent
    (root / "lock").touch()
    (root / "journal").write_text(json.dumps({"before": 0, "own": ["runs/events"], "linked": {}}))
    publishing.settle(root, destination)
    assert snapshot(destination) == before
    assert [path.name for path in root.iterdir()] == ["lock"]


def test_save_that_began_elsewhere_in_between_is_waited_for(tmp_path, destination, monkeypatch):
    def settle(root, directory):
        for other in staging._roots(directory):
            other.mkdir(exist_ok=True)

    monkeypatch.setattr(staging, "settle", settle)
    with (
        pytest.raises(
            BlockingIOError, match=r"still under way: wait for it \(PendingSave\.result\), or name another directory$"
        ),
        staging.staging(destination),
    ):
        pytest.fail("two saves go on at once")


def test_lock_that_another_save_has_just_removed_is_made_again(destination, monkeypatch):
    taken = []

    def lock(place):
        file = original(place)
        if not taken:
            place.unlink()
            place.touch()
        taken.append(file)
        return file

    original = staging.lock
    monkeypatch.setattr(staging, "lock", lock)
    with staging.staging(destination) as place:
        assert os.path.samestat(os.fstat(taken[-1].fileno()), (place.parent / "lock").stat())
    assert [file.closed for file in taken] == [True, True]
