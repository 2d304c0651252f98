# SPDX-License-Identifier: Apache-2.0
"""What can happen between the steps by which a save is prepared, published and settled."""

from __future__ import annotations

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


@pytest.mark.parametrize("writable", [True, False])
def test_directory_of_others_that_cannot_be_moved_stays_where_it_is(new, destination, monkeypatch, writable):
    inode = destination.stat().st_ino
    monkeypatch.setattr(publishing, "may_write", lambda path: writable or path.name != "runs")
    publishing.publish(new, destination, marker="config.json", whole=True)
    assert (destination.stat().st_ino == inode) is not writable
    files = {str(path.relative_to(destination)) for path in destination.rglob("*") if path.is_file()}
    assert files == {"config.json", "weights", "runs/events"}


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
    with pytest.raises(BlockingIOError, match="still under way"), staging.staging(destination):
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
