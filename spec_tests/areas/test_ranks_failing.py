# SPDX-License-Identifier: Apache-2.0
"""RANK: the file system fails on one rank, at each moment of a save in turn (spec/ranks.md)."""

from __future__ import annotations

import errno
import os
import time

import pytest
import torch
import torch.distributed as dist

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.training import shard, shard_whole
from spec_tests.harness.export import error_of, snapshot, text_of
from spec_tests.harness.kill import Steps
from spec_tests.harness.ranks import SOON, run_ranks, values

TEXT = "no space on this machine"


def adapter(impl, directory):
    spec = TRAINED["llama"]
    model = spec.trained(impl.adapters)
    shard(model)
    return lambda: impl.save_adapter(model, directory, spec.peft_config(impl.peft_config))


def whole(impl, directory):
    model = shard_whole(hf.llama())
    return lambda: impl.save_consolidated(model, directory, max_shard_bytes=9000)


def asynchronous(impl, directory):
    model = shard_whole(hf.llama())
    return lambda: impl.save_consolidated(model, directory, max_shard_bytes=9000, asynchronous=True).result()


STRIDE = 4
"""Of the moments each test takes every fourth, and most cases another one first; `faults` takes all."""
SAVES = {"adapter": adapter, "model": whole, "asynchronous": asynchronous}


def fail_everywhere(rank, world, impl, directory, kind, failing):
    save, steps, faults = SAVES[kind](impl, directory), Steps(), []
    moment = (world + failing) % STRIDE + 1 - STRIDE
    save()
    before = snapshot(directory)
    reached = torch.tensor(True)
    while reached:
        moment += STRIDE
        dist.barrier()
        if rank == failing:
            steps.end_at(moment, OSError(errno.ENOSPC, TEXT))
        started = time.monotonic()
        error = error_of(save)
        seconds = time.monotonic() - started
        if rank == failing:
            reached = torch.tensor(steps.stop())
        dist.broadcast(reached, failing)
        said: list = [None] * world
        dist.all_gather_object(said, text_of(error) if error else "")
        if len({bool(text) for text in said}) > 1:
            faults.append((moment, "an error on some ranks only", said))
        if error and rank != failing and not (f"rank {failing}" in text_of(error) and TEXT in text_of(error)):
            faults.append((moment, "another error", text_of(error)))
        if seconds > SOON:
            faults.append((moment, "seconds", seconds))
        if snapshot(directory) != before:  # of the same state, old and new are the same
            faults.append((moment, "the directory has changed", sorted(snapshot(directory).keys() ^ before.keys())))
        dist.barrier()
    left = [path.name for path in directory.parent.iterdir()]
    return moment, faults, left


@pytest.mark.clause("RANK-014")
@pytest.mark.parametrize(
    ("kind", "world", "failing"),
    [
        *(pytest.param("adapter", 2, rank, marks=pytest.mark.needs("save_adapter")) for rank in (0, 1)),
        *(
            pytest.param(*case, marks=pytest.mark.needs("save_consolidated"))
            for case in (("model", 2, 0), ("model", 4, 3), ("asynchronous", 2, 0), ("asynchronous", 2, 1))
        ),
    ],
)
def test_failing_file_system_of_one_rank_reaches_all(impl, fresh_dir, kind, world, failing):
    parent = fresh_dir()
    results = values(run_ranks(world, fail_everywhere, impl, parent / "out", kind, failing, timeout=3 * SOON))
    for moments, faults, left in results:
        assert faults == []
        assert left == ["out"]
        assert moments > 1 or (failing and kind == "adapter")


def fail_to_sync(rank, world, impl, directory, failing):
    model, asked = shard_whole(hf.llama()), []

    def sync(descriptor):
        asked.append(descriptor)
        raise OSError(errno.EIO, TEXT)

    if rank == failing:
        os.fsync = os.fdatasync = sync
    started = time.monotonic()
    error = error_of(lambda: impl.save_consolidated(model, directory, max_shard_bytes=9000))
    said: list = [None] * world
    dist.all_gather_object(said, (text_of(error) if error else "", bool(asked), time.monotonic() - started))
    return said


@pytest.mark.clause("RANK-007")
@pytest.mark.needs("save_consolidated")
@pytest.mark.parametrize("failing", [0, 1])
def test_disk_that_loses_what_one_rank_wrote_is_an_error_on_all(impl, fresh_dir, failing):
    parent = fresh_dir()
    said = values(run_ranks(2, fail_to_sync, impl, parent / "out", failing, timeout=2 * SOON))[0]
    assert max(seconds for _, _, seconds in said) < SOON
    # Who does not sync does not hear of it.
    if said[failing][1]:
        assert all(TEXT in text for text, _, _ in said), said
        assert snapshot(parent) == {}
    else:
        assert [text for text, _, _ in said] == ["", ""]
