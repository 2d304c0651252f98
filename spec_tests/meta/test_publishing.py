# SPDX-License-Identifier: Apache-2.0
"""The reference where two directories cannot change places, as on NFS: the suite runs where they can."""

from __future__ import annotations

import errno
import shutil

import pytest

import addons
from spec_tests.builders import hf
from spec_tests.harness.export import indexed_weights, snapshot
from spec_tests.harness.kill import die_at
from spec_tests.harness.ranks import run_ranks, values

OTHERS = {"notes.txt": "mine", "runs/events.out": "theirs"}


def refuse(_one, _other):
    raise OSError(errno.EINVAL, "this file system cannot")


@pytest.fixture
def earlier(tmp_path):
    """A directory with a checkpoint and other people's files."""
    directory = tmp_path / "earlier" / "out"
    addons.save_consolidated(hf.llama(seed=1), directory, max_shard_bytes=20_000)
    for name, text in OTHERS.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory


def save(rank, world, directory, moment):
    addons.publishing.exchange = refuse
    if moment:
        die_at(moment)
    addons.save_consolidated(hf.llama(seed=2), directory)


def numbers(directory):
    return indexed_weights(directory)["model.norm.weight"].tolist()


def test_files_are_moved_one_by_one(earlier):
    inode = earlier.stat().st_ino
    values(run_ranks(1, save, earlier, 0))
    assert earlier.stat().st_ino == inode
    assert numbers(earlier) == hf.llama(seed=2).state_dict()["model.norm.weight"].tolist()
    assert {name: (earlier / name).read_text() for name in OTHERS} == OTHERS
    assert [path.name for path in earlier.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("first", [1, 2, 3])
def test_what_others_changed_after_a_kill_stays_changed(earlier, tmp_path, first):
    moment, died, seen = first, True, set()
    known = [hf.llama(seed=seed).state_dict()["model.norm.weight"].tolist() for seed in (1, 2)]
    while died:
        place = tmp_path / str(moment) / "out"
        shutil.copytree(earlier, place)
        (result,) = run_ranks(1, save, place, moment)
        died = result.error_type is not None
        (place / "notes").write_text("changed")
        (place / "notes").replace(place / "notes.txt")
        addons.recover(place)
        assert numbers(place) in known, moment
        seen.add(known.index(numbers(place)))
        assert (place / "notes.txt").read_text() == "changed", moment
        assert [path.name for path in place.parent.iterdir()] == ["out"], moment
        assert snapshot(place)["runs/events.out"] == b"theirs", moment
        moment += 6
    assert seen == {0, 1}
