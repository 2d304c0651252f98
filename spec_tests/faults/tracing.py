# SPDX-License-Identifier: Apache-2.0
"""Run forked processes, one of them under strace, which can fail, interrupt or kill it at any of its system calls."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "openat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,write,writev,pwrite64,fsync,fdatasync,"
    "link,linkat,symlink,symlinkat,chmod,fchmod,fchmodat,chown,fchown,ftruncate"
)
"""What creates, writes, syncs, renames, exchanges and removes."""
_SIGN = "getppid"
"""What a process calls until it may act: strace holds a process before it sees its calls, and logs this one then."""
_SET_PTRACER = 0x59616D61  # of prctl: Yama lets a process be traced by its own ancestors only
Body = Callable[[], Callable[[], None]]
"""What a process does first, undisturbed; it returns what it does then."""
LIMIT = 60.0
"""Seconds after which a process that has not ended has hung."""
_FAILED = 7


@dataclass(frozen=True)
class Fault:
    """What happens to a process.

    Attributes:
        call: a system call by its name.
        number: at which of the process's calls of that name, from 1.
        what: ``SIGKILL``, ``SIGINT``, or an error by its name, such as ``ENOSPC``.
    """

    call: str
    number: int
    what: str

    def as_option(self) -> str:
        """As strace spells it."""
        kind = "signal" if self.what.startswith("SIG") else "error"
        return f"inject={self.call}:{kind}={self.what}:when={self.number}"


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        how: ``done``, ``error``, ``killed`` or ``hung``.
        seconds: from the start of all until this one's end.
    """

    how: str
    seconds: float


def missing_tool() -> str | None:
    """Why nothing can be traced here, and what to do; None where it can."""
    if not sys.platform.startswith("linux"):
        return "system calls can be made to fail on Linux only"
    return None if shutil.which("strace") else "strace must be installed: on Debian and Ubuntu, apt install strace"


def calls_of(bodies: Sequence[Body], traced: int, log: Path, folder: Path) -> list[tuple[str, int]]:
    """Each call of the traced process that changes something below a folder, with its number among those of its name.

    Raises:
        RuntimeError: a process did not end well, though nothing was done to it.
    """
    ended = run(bodies, traced, log)
    if any(one.how != "done" for one in ended):
        raise RuntimeError(f"an undisturbed save must succeed, got {[one.how for one in ended]}")
    found: list[tuple[str, int]] = []
    count: dict[tuple[str, str], int] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := re.match(r"(?:\[pid +)?(\d+)\]? +(\w+)\(", line):
            process, call = match[1], match[2]
            count[process, call] = count.get((process, call), 0) + 1
            if str(folder) in line and "O_RDONLY" not in line:
                found.append((call, count[process, call]))
    return list(dict.fromkeys(found))


def run(bodies: Sequence[Body], traced: int | None, log: Path, fault: Fault | None = None) -> list[Ended]:
    """Call each body in a process of its own, forked from this one; one of them, or none, under strace.

    All act when strace sees what the one calls. A body that raises has ended in an error; nothing of it is printed.

    Args:
        bodies: what the processes do.
        traced: which of them is traced.
        log: where strace writes its lines.
        fault: what is done to it.
    """
    gates, ready = [os.pipe() for _ in bodies], os.pipe()
    processes = [_forked(body, number, gates, ready) for number, body in enumerate(bodies)]
    os.close(ready[1])
    for reading, _ in gates:
        os.close(reading)
    while os.read(ready[0], 1):  # until all have prepared themselves, and closed it
        pass
    os.close(ready[0])
    tracer = None if traced is None else _tracer(processes[traced], log, fault)
    start = time.monotonic()
    for _, writing in gates:
        os.write(writing, b"x")
        os.close(writing)
    ended = _collected(processes, start)
    if tracer is not None:
        tracer.wait(10)
    return ended


def _tracer(process: int, log: Path, fault: Fault | None) -> subprocess.Popen[bytes]:
    options = ["-f", "-qq", "-y", "-e", f"trace={CALLS},{_SIGN}", "-e", "signal=none", "-o", str(log)]
    options += ["-e", fault.as_option()] if fault else []
    log.unlink(missing_ok=True)  # of an earlier run
    command = ["strace", *options, "-p", str(process)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603 - the PATH's own strace
    give_up = time.monotonic() + 10
    while not (log.exists() and f" {_SIGN}(" in log.read_text(encoding="utf-8", errors="replace")):
        if time.monotonic() > give_up:
            raise RuntimeError(
                "strace must be able to trace a child of this process: see /proc/sys/kernel/yama/ptrace_scope"
            )
        time.sleep(0.001)
    return tracer


def _forked(body: Body, number: int, gates: Sequence[tuple[int, int]], ready: tuple[int, int]) -> int:
    if process := os.fork():
        return process
    code = 0
    try:
        for at, (reading, writing) in enumerate(gates):
            os.close(writing)
            if at != number:
                os.close(reading)
        ctypes.CDLL(None).prctl(_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)  # by any process
        signal.signal(signal.SIGINT, signal.default_int_handler)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        os.close(ready[0])
        act = body()
        os.close(ready[1])
        while not select.select([gates[number][0]], [], [], 0.001)[0]:
            os.getppid()
        act()
    except BaseException:  # noqa: BLE001 - faults are made on purpose; the exit code tells of them
        code = _FAILED
    os._exit(code)


def _collected(processes: Sequence[int], start: float) -> list[Ended]:
    ended: dict[int, Ended] = {}
    while len(ended) < len(processes):
        for process in set(processes) - ended.keys():
            done, status = os.waitpid(process, os.WNOHANG)
            seconds = time.monotonic() - start
            if done:
                ended[process] = Ended(_how(status), seconds)
            elif seconds > LIMIT:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                ended[process] = Ended("hung", seconds)
        time.sleep(0.002)
    return [ended[process] for process in processes]


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return "killed"
    return "done" if os.WEXITSTATUS(status) == 0 else "error"
