# SPDX-License-Identifier: Apache-2.0
"""What a killed save has left is settled from any state, also where settling is killed itself."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import addons
from spec_tests.builders import hf
from spec_tests.harness.export import indexed_weights
from spec_tests.harness.kill import die_at
from spec_tests.harness.ranks import run_ranks

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


def test_recover_settles_what_lies_inside_the_destination(tmp_path):
    moment, died, seen = 1, True, set()
    while died:
        place = earlier(tmp_path / str(moment) / "out")
        (result,) = run_ranks(1, save, inside_the_destination, place, moment)
        died = result.error_type is not None
        seen.add(addons.recover(place))
        assert is_whole(place), moment
        assert hidden(place) == [], moment
        moment += 7
    assert seen == {True, False}


def test_killed_settling_leaves_no_config_beside_other_weights(tmp_path):
    killed = 0
    # Late enough for files to lie aside, early enough for them to come back.
    for moment, second in itertools.product((20, 30, 40), (1, 9, 17)):
        place = earlier(tmp_path / f"{moment}-{second}" / "out")
        (result,) = run_ranks(1, save, one_by_one, place, moment)
        assert result.error_type == "Exited"
        (result,) = run_ranks(1, recover, place, second)
        killed += result.error_type == "Exited"
        assert is_whole(place) or not (place / "config.json").exists(), (moment, second)
        addons.recover(place)
        assert is_whole(place), (moment, second)
        assert (place / "notes.txt").read_text() == "mine"
    assert killed > 4


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
