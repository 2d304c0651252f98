# SPDX-License-Identifier: Apache-2.0
"""What a killed save has left is settled from any state, also where settling is killed itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import addons
from spec_tests.builders import hf
from spec_tests.harness.export import indexed_weights, snapshot
from spec_tests.harness.kill import die_at
from spec_tests.harness.ranks import run_ranks

STRIDE = 7
SEEDS = (1, 2)


def refuse(_one, _other):
    raise OSError("this file system cannot")


def one_by_one():
    addons.publishing.exchange = refuse


def inside_the_destination():
    """Something is mounted on it: nothing can be made beside it and change places with it."""
    addons.staging.has_mounts = addons.publishing.has_mounts = lambda _directory: True


def save(rank, world, prepare, directory, moment):
    prepare()
    if moment:
        die_at(moment)
    addons.save_consolidated(hf.llama(seed=SEEDS[1]), directory)


def recover(rank, world, directory, moment):
    # In the order that goes wrong soonest: that of a listing is the file system's.
    usual = Path.iterdir
    Path.iterdir = lambda path: iter(sorted(usual(path), reverse=True))
    die_at(moment)
    return addons.recover(directory)


def after_the_exchange():
    addons.publishing._follow = lambda *_settings: os._exit(9)


def earlier(directory):
    addons.save_consolidated(hf.llama(seed=SEEDS[0]), directory, max_shard_bytes=20_000)
    (directory / "notes.txt").write_text("mine")
    return directory


def is_whole(directory):
    """Whether all weights are there, and of one save."""
    try:
        found = indexed_weights(directory)
    except FileNotFoundError:
        return False
    states = [hf.llama(seed=seed).state_dict() for seed in SEEDS]
    return any(all(tensor.equal(state[name]) for name, tensor in found.items()) for state in states)


def hidden(directory):
    return [path.name for path in (*directory.iterdir(), *directory.parent.iterdir()) if path.name.startswith(".")]


@pytest.mark.parametrize(("prepare", "first"), [(one_by_one, 3), (inside_the_destination, 1)])
def test_recover_settles_wherever_the_staging_directory_is(tmp_path, prepare, first):
    moment, died, seen = first, True, set()
    while died:
        place = earlier(tmp_path / str(moment) / "out")
        (result,) = run_ranks(1, save, prepare, place, moment)
        died = result.error_type is not None
        seen.add(addons.recover(place))
        assert is_whole(place), moment
        assert hidden(place) == [], moment
        moment += STRIDE
    assert seen == {True, False}


def test_killed_settling_leaves_no_config_beside_other_weights(tmp_path):
    # Late enough for files to lie aside, early enough for them to come back.
    saves = settled = 0
    for moment in range(20, 60, 10):
        for second in range(1, 40, 8):
            place = earlier(tmp_path / f"{moment}-{second}" / "out")
            (result,) = run_ranks(1, save, one_by_one, place, moment)
            if result.error_type is None:
                return check_counts(saves, settled)
            saves += 1
            (result,) = run_ranks(1, recover, place, second)
            settled += result.error_type is not None
            assert is_whole(place) or not (place / "config.json").exists(), (moment, second)
            addons.recover(place)
            assert is_whole(place), (moment, second)
            assert (place / "notes.txt").read_text() == "mine"
            if result.error_type is None:
                break
    return check_counts(saves, settled)


def check_counts(saves, settled):
    assert saves > 5
    assert settled > 2


def test_killed_clean_up_takes_nobodys_files(tmp_path):
    second, died = 1, True
    while died:
        place = earlier(tmp_path / str(second) / "out")
        for number in range(5):
            (place / f"{number}.txt").write_text("mine")
        (result,) = run_ranks(1, save, after_the_exchange, place, 0)
        assert result.error_type == "Exited"
        (result,) = run_ranks(1, recover, place, second)
        died = result.error_type is not None
        addons.recover(place)
        assert {path.read_text() for path in place.glob("*.txt")} == {"mine"}, second
        assert len(list(place.glob("*.txt"))) == 6, second
        assert is_whole(place), second
        assert hidden(place) == [], second
        second += 2
    assert second > 10


def test_mounts_are_seen_on_a_directory_and_below_it(tmp_path, monkeypatch):
    line = b"36 35 98:0 / %s rw,noatime master:1 - ext4 /dev/root rw\n"
    points = [b"/", b"/out/ad\\040apter/logs", b"/models"]
    monkeypatch.setattr(Path, "read_bytes", lambda _path: b"".join(line % point for point in points))
    seen = [
        addons.files.has_mounts(Path(place)) for place in ("/out/ad apter/logs", "/out/ad apter", "/out", "/models")
    ]
    assert seen == [True] * 4
    assert not any(addons.files.has_mounts(Path(place)) for place in ("/out/adapter", "/models/mine", "/mod"))


def test_write_that_the_system_cuts_short_goes_on(tmp_path, monkeypatch):
    pwrite, model = os.pwrite, hf.llama()
    addons.save_consolidated(model, tmp_path / "usual")
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: pwrite(file, memoryview(content)[:1000], at))
    addons.save_consolidated(model, tmp_path / "cut")
    assert snapshot(tmp_path / "cut") == snapshot(tmp_path / "usual")
