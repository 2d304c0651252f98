# SPDX-License-Identifier: Apache-2.0
"""How the reference brings a checkpoint to its place: on file systems like NFS, and under what attackers found.

The suite itself runs where two directories can change places.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
import stat
import sys
import threading
from concurrent.futures import wait

import pytest
import torch

import addons
from spec_tests.builders import hf
from spec_tests.harness.export import indexed_weights, snapshot
from spec_tests.harness.kill import die_at
from spec_tests.harness.ranks import SOON, run_ranks, values
from spec_tests.implementations.base import TrainerPeftConfig
from spec_tests.strategies.trees import Leaf, TreeSpec

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


def test_model_and_adapter_are_in_one_directory_for_those_who_ask(earlier):
    config = TrainerPeftConfig(dim=4, alpha=8)
    addons.save_adapter(TreeSpec((Leaf("q"),)).build(), earlier, config, into_other_checkpoint=True)
    addons.save_consolidated(hf.llama(seed=2), earlier, into_other_checkpoint=True)
    assert numbers(earlier) == hf.llama(seed=2).state_dict()["model.norm.weight"].tolist()
    assert {"adapter_config.json", "adapter_model.safetensors", *OTHERS} <= set(snapshot(earlier))


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


def filled(number):
    model = hf.llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(number)
    return model


def test_save_that_nobody_waits_for_writes_into_no_other(tmp_path, monkeypatch):
    place, may, write = tmp_path / "out", threading.Event(), addons.weights.WeightsWriter.write_copies

    def write_late(writer):
        may.wait(SOON)
        write(writer)

    monkeypatch.setattr(addons.weights.WeightsWriter, "write_copies", write_late)
    addons.save_consolidated(filled(1), place, asynchronous=True)
    gc.collect()
    threading.Timer(0.3, may.set).start()
    addons.save_consolidated(filled(2), place)
    assert may.is_set()
    assert {float(value) for t in indexed_weights(place).values() for value in t.unique()} == {2.0}
    assert list(tmp_path.iterdir()) == [place]


def test_save_that_somebody_may_still_wait_for_keeps_the_next_out(tmp_path):
    pending = addons.save_consolidated(filled(1), tmp_path / "out", asynchronous=True)
    with pytest.raises(BlockingIOError, match=r"under way: wait for it \(PendingSave\.result\)"):
        addons.save_consolidated(filled(2), tmp_path / "out")
    pending.result()
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_interrupted_wait_for_a_save_ends_the_writing_first(tmp_path, monkeypatch):
    pending = addons.save_consolidated(filled(1), tmp_path / "out", asynchronous=True, max_shard_bytes=2000)

    def interrupted(*_settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(addons.save, "everywhere", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pending.result()
    assert pending._writing.done()
    assert list(tmp_path.iterdir()) == []


def change_before_the_exchange(directory):
    """Let others replace one of their files, and remove one, when both are linked already."""
    exchange = addons.publishing.exchange
    (directory / "gone.txt").write_text("to be removed")

    def busy(one, other):
        (directory / "notes").write_text("newer")
        (directory / "notes").replace(directory / "notes.txt")
        (directory / "gone.txt").unlink()
        exchange(one, other)

    return busy


def die_after_the_exchange(rank, world, directory):
    addons.publishing._follow = lambda *_settings: os._exit(9)
    addons.publishing.exchange = change_before_the_exchange(directory)
    (directory / "late.txt").write_text("late")
    addons.save_consolidated(hf.llama(seed=2), directory)


def test_what_others_did_about_a_kill_after_the_exchange_is_united(earlier):
    (result,) = run_ranks(1, die_after_the_exchange, earlier)
    assert result.error_type == "Exited"
    (earlier / "runs").mkdir()
    (earlier / "runs" / "new.out").write_text("new")
    addons.recover(earlier)
    assert sorted(path.name for path in (earlier / "runs").iterdir()) == ["events.out", "new.out"]
    assert (earlier / "late.txt").read_text() == "late"
    assert (earlier / "notes.txt").read_text() == "newer"
    assert not (earlier / "gone.txt").exists()
    assert [path.name for path in earlier.parent.iterdir()] == ["out"]


def test_file_that_others_replace_in_the_middle_stays_theirs(earlier, monkeypatch):
    monkeypatch.setattr(addons.publishing, "exchange", change_before_the_exchange(earlier))
    addons.save_consolidated(hf.llama(seed=2), earlier)
    assert (earlier / "notes.txt").read_text() == "newer"
    assert not (earlier / "gone.txt").exists()


def test_directory_that_is_called_like_a_file_of_the_checkpoint_stays(earlier):
    place = earlier / "model-00009-of-00009.safetensors"
    place.mkdir()
    (place / "mine").write_text("mine")
    addons.save_consolidated(hf.llama(seed=2), earlier)
    assert (place / "mine").read_text() == "mine"


def test_link_in_place_of_the_staging_directory_is_not_followed(earlier, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    (earlier.parent / ".out.staging-save").symlink_to(victim)
    with pytest.raises(PermissionError, match="staging-save"):
        addons.save_consolidated(hf.llama(seed=2), earlier)
    assert (victim / "file").read_text() == "precious"


def test_child_that_drops_a_pending_save_takes_nothing_away(tmp_path):
    pending = addons.save_consolidated(filled(1), tmp_path / "out", asynchronous=True)
    wait([pending._writing])  # what writes holds the directory too
    gc.collect()
    if not (child := os.fork()):
        pending = None
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    pending.result()
    assert numbers(tmp_path / "out")[0] == 1.0


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_files_get_the_group_of_a_directory_that_says_so(tmp_path):
    groups = [group for group in (*os.getgroups(), *([2000] if os.geteuid() == 0 else [])) if group != os.getegid()]
    directory = tmp_path / "out"
    directory.mkdir()
    if groups:
        os.chown(directory, -1, groups[0])
    directory.chmod(0o2775)
    addons.save_consolidated(hf.llama(), directory)
    assert {path.stat().st_gid for path in directory.iterdir()} == {directory.stat().st_gid}
    assert directory.stat().st_mode & stat.S_ISGID


def save_into_what_may_not_be_written(rank, world, directory):
    if os.geteuid() == 0:
        os.setuid(65534)
    addons.save_consolidated(hf.llama(), directory)
    directory.chmod(0o555)
    try:
        addons.save_consolidated(hf.llama(seed=2), directory)
    except PermissionError:
        refused = True
    directory.chmod(0o755)
    addons.save_consolidated(hf.llama(seed=2), directory)
    return refused, sorted(path.name for path in directory.parent.iterdir())


def test_directory_that_may_not_be_written_is_refused_until_it_may(tmp_path):
    parent = tmp_path / "open"
    parent.mkdir()
    parent.chmod(0o777)
    hf.llama()  # another user may not be able to import what it needs
    for above in list(tmp_path.parents)[:3]:
        above.chmod(above.stat().st_mode | 0o111)
    tmp_path.chmod(0o755)
    assert values(run_ranks(1, save_into_what_may_not_be_written, parent / "out")) == [(True, ["out"])]


def die_while_cleaning_up(rank, world, directory, what):
    remove = addons.publishing.remove_tree

    def half(path):
        if path.name == "new":
            if what == "half":
                (path / "notes.txt").unlink()
            else:
                remove(path)
            os._exit(9)
        remove(path)

    addons.publishing.remove_tree = half
    # The order in which a directory is read is nobody's choice: the worst one.
    iterdir = type(directory).iterdir
    type(directory).iterdir = lambda path: sorted(iterdir(path), key=lambda one: one.name != "new")
    addons.save_consolidated(hf.llama(seed=2), directory)


@pytest.mark.parametrize("what", ["half", "all"])
def test_kill_while_the_earlier_checkpoint_is_removed_loses_nothing(earlier, what):
    (result,) = run_ranks(1, die_while_cleaning_up, earlier, what)
    assert result.error_type == "Exited"
    addons.recover(earlier)
    assert {name: (earlier / name).read_text() for name in OTHERS} == OTHERS
    assert numbers(earlier) == hf.llama(seed=2).state_dict()["model.norm.weight"].tolist()
    assert [path.name for path in earlier.parent.iterdir()] == ["out"]
