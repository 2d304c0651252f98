# SPDX-License-Identifier: Apache-2.0
"""RANK: a rank that is killed in the middle of a save, and one that is late with an earlier one (spec/ranks.md)."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.training import shard, shard_whole
from spec_tests.harness.export import error_of, snapshot, text_of
from spec_tests.harness.ranks import run_ranks, values

WORLD, PATIENCE = 3, 2


def adapter(impl, directory, group):
    spec = TRAINED["llama"]
    model = spec.trained(impl.adapters)
    shard(model)
    config = spec.peft_config(impl.peft_config)
    return lambda: impl.save_adapter(model, directory, config, process_group=group)


def whole(impl, directory, group):
    model = shard_whole(hf.llama())
    return lambda: impl.save_consolidated(model, directory, max_shard_bytes=9000, process_group=group)


def die_in_communication(moment):
    """Kill this process at its ``moment``-th call of torch.distributed, counted from now."""
    left = moment

    def profile(frame, event, _argument):
        nonlocal left
        if event == "call" and frame.f_code.co_filename == dist.distributed_c10d.__file__:
            left -= frame.f_code.co_name in {"all_reduce", "send", "recv", "broadcast_object_list"}
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)


def lose_a_rank(rank, world, impl, make, directory, lost, moment):
    group = dist.new_group(list(range(world)), timeout=timedelta(seconds=PATIENCE))
    save = make(impl, directory, group)
    save()
    before = snapshot(directory)
    dist.barrier(group)
    if rank == lost:
        die_in_communication(moment)
    started = time.monotonic()
    error = error_of(save)
    seconds = time.monotonic() - started
    return text_of(error) if error else "", seconds, snapshot(directory) == before


@pytest.mark.clause("RANK-016")
@pytest.mark.skipif(sys.platform != "linux", reason="ranks that can be killed are forks")
@pytest.mark.parametrize(
    ("make", "lost", "moment"),
    [
        *(pytest.param(adapter, *case, marks=pytest.mark.needs("save_adapter")) for case in ((0, 2), (2, 5))),
        *(
            pytest.param(whole, *case, marks=pytest.mark.needs("save_consolidated"))
            for case in ((0, 4), (1, 8), (2, 1))
        ),
    ],
)
def test_killed_rank_is_an_error_of_the_others(impl, fresh_dir, make, lost, moment):
    results = run_ranks(WORLD, lose_a_rank, impl, make, fresh_dir() / "out", lost, moment)
    assert results[lost].error_type == "Exited"
    for result in results:
        if result.rank != lost:
            assert result.error_type is None, result
            text, seconds, is_old = result.value
            assert f"{list(range(WORLD))}" in text
            assert "while" in text
            assert seconds < 2 * PATIENCE + 3
            assert is_old


def save_after_a_late_one(rank, world, impl, directory):
    def hold_up(event, _arguments):
        if event == "open" and rank == 1 and threading.current_thread() is not threading.main_thread():
            time.sleep(0.5)

    sys.addaudithook(hold_up)
    model = shard_whole(hf.llama())
    save = functools.partial(impl.save_consolidated, model, asynchronous=True)
    save(directory, max_shard_bytes=9000)  # and nobody waits for it
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    time.sleep(0.3)  # rank 0 has written its part by now
    errors = []
    error = error_of(lambda: errors.append(save(directory, max_shard_bytes=30000)))
    dist.barrier()
    time.sleep(2)  # and rank 1 writes on
    if not error:
        errors[0].result()
    save(directory.with_name("alone"), max_shard_bytes=30000).result()
    return text_of(error) if error else None


@pytest.mark.needs("asynchronous")
@pytest.mark.clause("ERR-009")
@pytest.mark.needs("save_consolidated")
def test_save_that_nobody_waits_for_stays_out_of_the_next(impl, fresh_dir):
    parent = fresh_dir()
    for error in values(run_ranks(2, save_after_a_late_one, impl, parent / "out")):
        assert error is None or str(parent / "out") in error
        if error is None:
            assert snapshot(parent / "out") == snapshot(parent / "alone")
