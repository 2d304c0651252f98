"""The rank harness itself: what each kind of ending looks like, and that nothing is left behind."""

from __future__ import annotations

import ctypes
import io
import mmap
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from spec_tests.harness.large_pages import use_large_pages
from spec_tests.harness.ranks import RankResult, all_failed, run_ranks, values
from spec_tests.meta.forks import in_a_fork


def test_every_rank_returns_its_own_value() -> None:
    results = run_ranks(3, lambda rank, world, offset: (rank + offset, world), 10)
    assert [result.rank for result in results] == [0, 1, 2]
    assert values(results) == [(10, 3), (11, 3), (12, 3)]
    assert all(result.error is result.error_type is result.traceback is None for result in results)


def test_ranks_form_a_group_that_computes() -> None:
    def summed(rank: int, world: int) -> torch.Tensor:
        tensor = torch.tensor([1.0, 10.0]) * (rank + 1)
        dist.all_reduce(tensor)
        return tensor

    for tensor in values(run_ranks(3, summed)):
        assert tensor.tolist() == [6.0, 60.0]


def test_an_exception_on_one_rank_is_reported_and_the_others_finish() -> None:
    def body(rank: int, world: int) -> int:
        if rank == 0:
            raise KeyError("lost-on-rank-0")
        # Long enough for the failed rank to have left, had it left; then the collective would fail here.
        time.sleep(0.3)
        dist.send(torch.ones(1), dst=3 - rank) if rank == 1 else dist.recv(torch.zeros(1), src=3 - rank)
        return rank

    failed, *others = run_ranks(3, body)
    assert failed.error_type == "KeyError"
    assert failed.error is not None
    assert "lost-on-rank-0" in failed.error
    assert "in body" in str(failed.traceback)
    assert values(others) == [1, 2]


def test_a_failed_rank_stays_alive_until_all_have_reported() -> None:
    def body(rank: int, world: int) -> bool:
        pids: list[Any] = [None, None]
        dist.all_gather_object(pids, os.getpid())
        if rank == 0:
            raise RuntimeError("over")
        time.sleep(0.5)
        os.kill(pids[0], 0)
        state = Path(f"/proc/{pids[0]}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
        return state != "Z"

    assert run_ranks(2, body)[1].value is True


def test_a_hanging_rank_is_a_timeout_with_its_stack() -> None:
    def sleeps_on_rank_one(rank: int, world: int) -> str:
        if rank == 1:
            time.sleep(600)
        return "done"

    started = time.monotonic()
    first, second = run_ranks(2, sleeps_on_rank_one, timeout=1.5)
    assert time.monotonic() - started < 5
    assert first.value == "done"
    assert second.error_type == "Timeout"
    assert "rank 1" in str(second.error)
    assert "sleeps_on_rank_one" in str(second.traceback)


def test_a_rank_waiting_in_a_collective_is_a_timeout_although_its_peer_failed() -> None:
    def waits_in_a_barrier(rank: int, world: int) -> None:
        if rank == 0:
            raise ValueError("before the barrier")
        dist.barrier()

    failed, waiting = run_ranks(2, waits_in_a_barrier, timeout=1.5)
    assert failed.error_type == "ValueError"
    assert waiting.error_type == "Timeout"
    assert "waits_in_a_barrier" in str(waiting.traceback)


def test_a_rank_that_blocks_every_signal_is_a_timeout() -> None:
    def stubborn(rank: int, world: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.valid_signals()))
        time.sleep(600)

    (result,) = run_ranks(1, stubborn, timeout=1.0)
    assert result.error_type == "Timeout"


@pytest.mark.parametrize(
    ("end", "told"),
    [(lambda: os._exit(3), "code 3"), (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL")],
    ids=["os._exit", "SIGKILL"],
)
def test_a_rank_that_ends_hard_is_reported(end: Any, told: str, tmp_path: Path) -> None:
    def body(rank: int, world: int) -> int:
        if rank == 0:
            (tmp_path / "connected").touch()
        else:
            # Earlier, rank 0 may still be connecting, which fails then.
            while not (tmp_path / "connected").exists():
                time.sleep(0.01)
            end()
        return rank

    first, second = run_ranks(2, body)
    assert first.value == 0
    assert second.error_type == "Exited"
    assert told in str(second.error)
    assert "rank 1" in str(second.error)


def test_sys_exit_is_an_error_like_any_other() -> None:
    (result,) = run_ranks(1, lambda *_: sys.exit(4))
    assert (result.error_type, result.error) == ("SystemExit", "4")


def _interrupted(rank: int, world: int) -> str:
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        return "interrupted"
    return "not interrupted"


def test_ranks_hear_ctrl_c_though_the_run_is_in_the_background() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert values(run_ranks(2, _interrupted)) == ["interrupted", "interrupted"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_value_that_cannot_be_pickled_is_an_error_of_its_rank() -> None:
    first, second = run_ranks(2, lambda rank, _: threading.Lock() if rank == 1 else "fine")
    assert first.value == "fine"
    assert second.error_type is not None
    assert "rank 1" in str(second.error)


def test_a_value_that_cannot_be_unpickled_is_an_error_of_its_rank() -> None:
    (result,) = run_ranks(1, lambda *_: _PicklesOnly())
    assert result.error_type == "LookupError"
    assert "rank 0" in str(result.error)


class _PicklesOnly:
    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise LookupError("no such class here")


def test_values_tells_every_failure() -> None:
    def body(rank: int, world: int) -> None:
        raise ValueError(f"boom-{rank}")

    with pytest.raises(AssertionError, match=r"(?s)rank 0: ValueError: boom-0.*rank 1: ValueError: boom-1"):
        values(run_ranks(2, body))


def test_twenty_runs_leave_no_child_and_no_descriptor() -> None:
    others = _children()
    run_ranks(2, _barrier)
    before = _descriptors()
    for _ in range(20):
        assert values(run_ranks(2, _barrier)) == [0, 1]
    assert multiprocessing.active_children() == []
    assert _children() == others
    assert _descriptors() == before


def test_a_timeout_and_a_hard_end_leave_no_child() -> None:
    others = _children()
    run_ranks(2, lambda *_: time.sleep(600), timeout=0.5)
    run_ranks(2, lambda *_: os._exit(1))
    assert _children() == others


def test_ranks_work_after_the_parent_used_many_threads() -> None:
    def multiplied(rank: int, world: int) -> tuple[float, int]:
        tensor = torch.ones(512, 512) @ torch.ones(512, 512)
        dist.all_reduce(tensor)
        return float(tensor[0, 0]), torch.get_num_threads()

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        torch.ones(1024, 1024) @ torch.ones(1024, 1024)
        assert values(run_ranks(2, multiplied)) == [(1024.0, 1), (1024.0, 1)]
    finally:
        torch.set_num_threads(threads)


def test_ranks_start_from_the_same_seed_whatever_the_parent_drew() -> None:
    def drawn(rank: int, world: int) -> float:
        return float(torch.rand(1))

    first = values(run_ranks(2, drawn))
    torch.rand(7)
    assert first == values(run_ranks(2, drawn))
    assert first[0] == first[1]


def test_what_ranks_print_is_seen(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # As under pytest's capsys: what a fork writes into its copy of a buffer in memory nobody reads.
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    def talks(rank: int, world: int) -> None:
        print(f"out-{rank} \N{SNOWMAN}")
        print(f"err-{rank}", file=sys.stderr)
        os.write(1, b"raw\n")
        if rank == 1:
            os._exit(1)

    run_ranks(2, talks)
    out, err = capfd.readouterr()
    assert {"out-0 \N{SNOWMAN}", "out-1 \N{SNOWMAN}", "raw"} <= set(out.splitlines())
    assert {"err-0", "err-1"} <= set(err.splitlines())


def test_a_parent_that_holds_a_group_is_refused() -> None:
    def body(rank: int, world: int) -> list[RankResult]:
        return run_ranks(1, lambda *_: None)

    (result,) = run_ranks(1, body)
    assert result.error_type == "RuntimeError"
    assert "process group" in str(result.error)


def _barrier(rank: int, world: int) -> int:
    dist.barrier()
    return rank


def _children() -> list[str]:
    # An earlier test of the same worker may have left the server of clean processes, which stays for the next one.
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def refuse_or_break(rank, world, broken):
    raise NameError("name 'replace' is not defined") if broken else ValueError("refused")


@pytest.mark.parametrize("broken", [True, False])
def test_fault_of_the_test_is_no_refusal(broken):
    assert all_failed(run_ranks(2, refuse_or_break, broken)) is not broken


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without large pages")
def test_large_pages_are_asked_for_and_hold_what_was_there(tmp_path: Path) -> None:
    def asked() -> int:
        memory = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        content = os.urandom(8 << 20)
        memory[:] = content
        middle = ctypes.addressof(ctypes.c_char.from_buffer(memory, 4 << 20))
        assert "hg" not in _flags(middle)
        use_large_pages()
        assert memory[:] == content
        assert "hg" in _flags(middle)
        return 0

    assert in_a_fork(asked, tmp_path / "output") == 0, (tmp_path / "output").read_text()


def _flags(address: int) -> list[str]:
    """What the kernel says of the memory at that address; ``hg`` for large pages."""
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    for one in re.finditer(r"^(\w+)-(\w+) .*?^VmFlags:(.*?)$", maps, re.MULTILINE | re.DOTALL):
        if int(one[1], 16) <= address < int(one[2], 16):
            return one[3].split()
    raise LookupError(hex(address))
