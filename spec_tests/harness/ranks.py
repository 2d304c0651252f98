"""Run a function on real gloo ranks: processes forked from this one, which report before any of them leaves.

Rules, each seen to matter: a child's first torch call is ``set_num_threads(1)`` (the thread pool of a parent
that has multiplied matrices does not survive a fork); the parent imports the distributed packages first and
never holds a group or a CUDA context; it computes no gradients (a CUDA build of torch then refuses them in every
fork); every rank, failed or not, stays alive until all have reported (a process that leaves closes its sockets, and
its peers then fail at once for that reason alone); children leave by ``os._exit``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback as tracebacks
import warnings
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
import torch.distributed as dist

from spec_tests.harness.warm import warm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_FORKS = sys.platform.startswith("linux")
SOON = float(os.environ.get("ADDONS_SPEC_SOON", "20"))
"""Seconds in which ranks that do not wait for each other have ended: far below any group's timeout, far above what a
loaded machine takes. Mutants that hang are given less."""
PATIENCE = SOON / 2
"""Seconds in which a rank hears of another's failure: one that still waits after these waits for ever."""
_GRACE = 15.0  # seconds after the deadline at which a child ends by itself, should the parent be gone


_OF_THE_TEST = {"ImportError", "ModuleNotFoundError", "NameError", "UnboundLocalError"}
"""Errors with which no implementation refuses anything."""


@dataclass(frozen=True)
class RankResult:
    """What one rank came to.

    ``error_type`` is the exception's class name, or ``Timeout`` (past the deadline; ``traceback`` then holds
    its threads' stacks) or ``Exited`` (the process ended without a report). ``seconds`` is the body's own
    time.
    """

    rank: int
    value: Any
    error: str | None
    error_type: str | None
    seconds: float
    traceback: str | None


def run_ranks(
    world: int, body: Callable[..., Any], *args: Any, timeout: float = 3 * SOON, backend: str = "gloo"
) -> list[RankResult]:
    """Call ``body(rank, world, *args)`` on ``world`` ranks; the results are in the order of ranks.

    A failing body is a result, not an exception; the other ranks then have `PATIENCE` seconds left. Values are
    pickled. Every rank starts with the same random seed. Output goes to this process's file descriptors 1 and 2 as
    it is written. Where there is no fork, ``body`` and ``args`` are pickled too. With nccl in the ``backend`` each
    rank has the GPU of its number, and is started afresh: CUDA does not survive a fork. Ranks that have not ended after
    ``timeout`` seconds hang, and are ended.
    """
    _check_parent()
    warm()
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        job = _Job(world, body, args, timeout, folder, backend)
        with _started(job) as ranks:
            return _collect(ranks, timeout)


def values(results: Sequence[RankResult]) -> list[Any]:
    """Every rank's value; if any failed, an AssertionError with all their errors and tracebacks."""
    failed = [f"rank {r.rank}: {r.error_type}: {r.error}\n{r.traceback}" for r in results if r.error_type]
    if failed:
        raise AssertionError("\n".join(failed))
    return [result.value for result in results]


def all_failed(results: Sequence[RankResult]) -> bool:
    """Whether every rank has failed by itself: none waited in vain for another or ran into a fault of the test."""
    return all(result.error_type not in {None, "Timeout", *_OF_THE_TEST} for result in results)


def _check_parent() -> None:
    if dist.is_available() and dist.is_initialized():
        raise RuntimeError("this process holds a process group; its forks would share the group's sockets")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise RuntimeError("this process has initialised CUDA, which does not survive a fork")


# --- the parent's side ---


@dataclass(frozen=True)
class _Job:
    world: int
    body: Callable[..., Any]
    args: tuple[Any, ...]
    timeout: float
    folder: str  # holds the rendezvous store and the stacks of ranks past the deadline
    backend: str

    @property
    def forks(self) -> bool:
        return _FORKS and "nccl" not in self.backend

    def stack_file(self, rank: int) -> Path:
        return Path(self.folder, f"stack-{rank}")


@dataclass(frozen=True)
class _Rank:
    number: int
    process: Any  # a ForkProcess or a SpawnProcess; typeshed gives them no common class with .kill()
    line: Connection
    stack_file: Path


@contextlib.contextmanager
def _started(job: _Job) -> Iterator[list[_Rank]]:
    """Started ranks; on leaving, whatever happened, none is left."""
    context: Any = multiprocessing.get_context("fork" if job.forks else "spawn")
    ranks: list[_Rank] = []
    try:
        for number in range(job.world):
            ours, theirs = context.Pipe()
            # A fork inherits the lines of the ranks before it. It closes them: each line then has two holders
            # only, and when one process ends the other sees it.
            inherited = [rank.line for rank in ranks] + [ours] if job.forks else []
            process = context.Process(target=_child, args=(number, job, theirs, inherited))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
                process.start()
            theirs.close()
            ranks.append(_Rank(number, process, ours, job.stack_file(number)))
        yield ranks
    finally:
        for rank in ranks:
            rank.line.close()  # the release: the child waits for the end of its line
        for rank in ranks:
            rank.process.join(5.0)
            if rank.process.is_alive():
                rank.process.kill()
                rank.process.join()
            rank.process.close()


def _collect(ranks: list[_Rank], timeout: float) -> list[RankResult]:
    started = time.monotonic()
    deadline = started + timeout
    pending = {rank.line: rank for rank in ranks}
    results: dict[int, RankResult] = {}
    while pending and (left := deadline - time.monotonic()) > 0:
        for line in wait(list(pending), left):
            rank = pending.pop(line)  # type: ignore[call-overload]
            results[rank.number] = _received(rank, time.monotonic() - started)
            if results[rank.number].error_type:
                deadline = min(deadline, time.monotonic() + PATIENCE)
    # All stacks before the first kill: a rank whose peer is killed fails for that reason.
    stacks = {rank.number: _stacks(rank) for rank in pending.values()}
    for rank in pending.values():
        rank.process.kill()
        seconds = deadline - started
        message = f"rank {rank.number} gave no result within {seconds:.3g} s"
        results[rank.number] = RankResult(rank.number, None, message, "Timeout", seconds, stacks[rank.number])
    return [results[rank.number] for rank in ranks]


def _received(rank: _Rank, elapsed: float) -> RankResult:
    try:
        report = rank.line.recv_bytes()
    except (EOFError, OSError):
        rank.process.join(5.0)
        code = rank.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        message = f"rank {rank.number} {how} without a report"
        return RankResult(rank.number, None, message, "Exited", elapsed, None)
    try:
        result: RankResult = pickle.loads(report)  # noqa: S301 - from our own child
    except Exception as error:  # noqa: BLE001 - whatever a class raises when it is rebuilt
        message = f"rank {rank.number} returned a value that cannot be unpickled: {error}"
        return _failed(rank.number, message, error, elapsed)
    return result


def _stacks(rank: _Rank) -> str | None:
    """The Python stacks of a rank that is still running, as its own signal handler writes them."""
    if not _FORKS or not rank.stack_file.exists():
        return None
    os.kill(rank.process.pid, signal.SIGUSR1)
    written, give_up = "", time.monotonic() + 1.0
    while time.monotonic() < give_up:
        time.sleep(0.02)
        before, written = written, rank.stack_file.read_text()
        if written and written == before:
            break
    return written or None


# --- the child's side ---


def _child(rank: int, job: _Job, line: Connection, inherited: list[Connection]) -> None:
    code = 1
    try:
        torch.set_num_threads(1)
        for other in inherited:
            other.close()
        _prepare_process(rank, job)
        line.send_bytes(_report(rank, job))
        with contextlib.suppress(EOFError, OSError):
            line.recv_bytes()
        code = 0
    except BaseException:  # noqa: BLE001 - the process ends here, and says why
        tracebacks.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _prepare_process(rank: int, job: _Job) -> None:
    # The parent's sys.stdout may be a buffer in memory (pytest's capsys): what a fork writes there is lost.
    sys.stdout, sys.stderr = _straight_to(1), _straight_to(2)
    if _FORKS:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest-timeout's handler, in the parent
        signal.setitimer(signal.ITIMER_REAL, job.timeout + _GRACE)
        # Without it gloo looks up the host's name, which may not resolve.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        stacks = os.open(job.stack_file(rank), os.O_CREAT | os.O_WRONLY)
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell has put into the background ignores it
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job.world))
    if "nccl" in job.backend:
        torch.cuda.set_device(rank)
        torch.cuda.manual_seed(0)
    # torch.manual_seed looks for each kind of accelerator, and a rank has no time for those it does not use.
    torch.default_generator.manual_seed(0)
    random.seed(0)


def _straight_to(descriptor: int) -> TextIO:
    # A write a line: the lines of several ranks do not mix, and a rank that ends hard loses none.
    return os.fdopen(os.dup(descriptor), "w", buffering=1, encoding="utf-8", errors="backslashreplace")


def _report(rank: int, job: _Job) -> bytes:
    """The pickled RankResult of the body. The group is not destroyed: peers may still be using it."""
    started = time.monotonic()
    try:
        # Longer than the parent's deadline: a rank that waits for ever is seen as such, with its stack.
        dist.init_process_group(
            job.backend,
            init_method=f"file://{job.folder}/store",
            rank=rank,
            world_size=job.world,
            timeout=timedelta(seconds=job.timeout + 2 * _GRACE),
        )
        started = time.monotonic()
        value = job.body(rank, job.world, *job.args)
        result = RankResult(rank, value, None, None, time.monotonic() - started, None)
    except BaseException as error:  # noqa: BLE001 - sys.exit and pytest.fail are results too
        seconds = time.monotonic() - started
        return pickle.dumps(_failed(rank, str(error), error, seconds))
    try:
        return pickle.dumps(result)
    except Exception as error:  # noqa: BLE001 - whatever a class raises when it is taken apart
        message = f"rank {rank} returned a value that cannot be pickled: {error}"
        return pickle.dumps(_failed(rank, message, error, result.seconds))


def _failed(rank: int, message: str, error: BaseException, seconds: float) -> RankResult:
    stack = "".join(tracebacks.format_exception(error))
    return RankResult(rank, None, message, type(error).__name__, seconds, stack)
