# SPDX-License-Identifier: Apache-2.0
"""What the bench counts: bytes received, bytes written, memory."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from spec_tests.bench.counted import Received, received
from spec_tests.bench.pairing import Contender, Pairs, in_turn
from spec_tests.bench.rows import BenchError, NotHereError
from spec_tests.bench.sharded import Together, on_ranks
from spec_tests.bench.watching import Peak, Written
from spec_tests.harness.ranks import run_ranks, values

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux counts these")
MIB = 2**20


def gathered(rank, world):
    dist.all_gather([torch.empty(10) for _ in range(world)], torch.ones(10))


def gathered_by_one(rank, world):
    dist.gather(torch.ones(10), [torch.empty(10) for _ in range(world)] if rank == 1 else None, dst=1)


def told(rank, world):
    dist.broadcast(torch.ones(10), src=1)


def dealt(rank, world):
    dist.scatter(torch.empty(10), [torch.ones(10)] * world if rank == 1 else None, src=1)


def summed(rank, world):
    dist.all_reduce(torch.ones(10))
    dist.barrier()


def sent(rank, world):
    dist.recv(torch.empty(10), src=0) if rank == 2 else None
    dist.send(torch.ones(10), dst=2) if rank == 0 else None


def sent_and_awaited(rank, world):
    work = dist.irecv(torch.empty(10), src=0) if rank == 2 else dist.isend(torch.ones(10), dst=2) if rank == 0 else None
    work.wait() if work else None


def swapped(rank, world):
    dist.all_to_all_single(torch.empty(30), torch.ones(30))


@pytest.mark.parametrize(
    ("exchange", "expected"),
    [
        (gathered, [80, 80, 80]),
        (gathered_by_one, [0, 80, 0]),
        (told, [40, 0, 40]),
        (dealt, [40, 0, 40]),
        (summed, [40, 40, 40]),
        (sent, [0, 0, 40]),
        (sent_and_awaited, [0, 0, 40]),
    ],
)
def test_bytes_from_other_ranks_are_counted(exchange, expected):
    def body(rank, world):
        with Received() as counter:
            exchange(rank, world)
        return counter.bytes

    assert values(run_ranks(3, body)) == expected


def test_objects_are_counted_once_by_what_carries_them():
    def body(rank, world):
        with Received() as counter:
            # As somebody does who imported the function by name.
            dist.distributed_c10d.all_gather_object([None] * world, "x" * 1000)
        return counter.bytes

    one, other = values(run_ranks(2, body))
    assert one == other
    assert 1000 < one < 1200


def test_a_single_rank_receives_nothing():
    def body(rank, world):
        with Received() as counter:
            dist.broadcast_object_list(["x"], src=0)
            dist.all_reduce(torch.ones(10))
        return counter.bytes

    assert values(run_ranks(1, body)) == [0]


def test_collective_that_is_not_known_is_an_error():
    with pytest.raises(BenchError, match="whisper_ is a collective"):
        received("whisper_", (torch.ones(1),))


def test_slowest_rank_counts_and_all_stop_after_the_same_pair(tmp_path, monkeypatch):
    monkeypatch.setattr("gc.collect", int)  # of all that a test process holds it takes a second

    def body(rank, world):
        def run(directory):
            (directory / f"{rank}").write_text("", encoding="utf-8")
            threading.Event().wait(0.1 * rank)

        def look(directory):
            return len(list(directory.iterdir()))

        ranks = Together(first=rank == 0)
        return in_turn(Contender(run, look=look), Contender(run, look=look), tmp_path, Pairs(1, 9, 0.4), ranks)

    first, second = values(run_ranks(2, body))
    assert first == second
    assert len(first.subject) <= 3
    assert min(first.subject) >= 0.1


def test_rank_that_fails_fails_the_row():
    def body(rank, world, error):
        raise error

    with pytest.raises(BenchError, match="rank 0 of 2: KeyError"):
        on_ranks(2, body, KeyError("lost"))
    with pytest.raises(NotHereError, match="no proc"):
        on_ranks(1, body, NotHereError("no proc"))


def write(path, size):
    path.write_bytes(os.urandom(size))


@linux
def test_bytes_written_by_any_thread_are_counted_and_what_goes_to_ranks_is_not(tmp_path):
    def body(rank, world):
        dist.barrier()
        before = len(list(Path("/proc/self/fd").iterdir()))
        with Written() as watched:
            dist.barrier()
            dist.all_gather([torch.empty(8 * MIB, dtype=torch.uint8) for _ in range(world)], torch.ones(8 * MIB).byte())
            threads = [threading.Thread(target=write, args=(tmp_path / f"{rank}-{n}", MIB)) for n in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            dist.barrier()
        return watched.amount, len(list(Path("/proc/self/fd").iterdir())) - before

    for amount, descriptors in values(run_ranks(2, body)):
        assert 2 * MIB <= amount < 2.1 * MIB
        assert descriptors == 0


@linux
def test_memory_is_the_peak_over_what_was_held_before():
    def body(rank, world):
        held = torch.ones(16 * MIB)
        with Peak() as watched:
            for _ in range(2):
                more = torch.ones(8 * MIB)
                threading.Event().wait(0.02)
                del more
        return watched.amount, held.nbytes

    ((amount, held),) = values(run_ranks(1, body))
    assert held == 64 * MIB
    assert 31 * MIB < amount < 40 * MIB
