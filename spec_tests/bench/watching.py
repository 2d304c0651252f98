# SPDX-License-Identifier: Apache-2.0
"""What a process writes, and how much memory it takes: counted by Linux, read from ``/proc``."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spec_tests.bench.rows import BenchError, NotHereError

if TYPE_CHECKING:
    from typing_extensions import Self

_IO, _STATUS = Path("/proc/self/io"), Path("/proc/self/status")
# Offsets of tcpi_bytes_sent and tcpi_bytes_retrans in Linux's `struct tcp_info`, whose fields never move.
_SENT, _RETRANSMITTED = 200, 208

# Another process: a thread of this one would wait for the interpreter's lock while the save holds it.
_SAMPLER = """
import sys, threading, time
def anonymous():
    with open("/proc/" + sys.argv[1] + "/status", "rb") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(b"RssAnon"))
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
peak = anonymous()
print("watching", flush=True)
while not over.wait(0.001):
    peak = max(peak, anonymous())
print(max(peak, anonymous()) * 1024, flush=True)
"""


class Written:
    """Bytes that this process writes into files between entering and leaving.

    ``wchar`` counts every call that writes, by any thread and on any filesystem, tmpfs among them, but sockets too:
    what went out through TCP is subtracted. ``write_bytes`` counts pages that became dirty on a disk, also those that
    were written through a mapping. Neither sees everything, so the larger one counts; what is written through a
    mapping of a file on tmpfs is seen by neither.
    """

    amount = 0

    def __enter__(self) -> Self:
        if not _IO.exists():
            raise NotHereError("bytes written are counted by Linux only")
        self._before = _counters()
        return self

    def __exit__(self, *_error: object) -> None:
        calls, sent, dirty = (after - before for after, before in zip(_counters(), self._before, strict=True))
        self.amount = max(calls - sent, dirty)


class Peak:
    """Bytes of memory that this process held at its peak between entering and leaving, over what it held before.

    Anonymous memory is counted, which is what an allocation takes. Pages of files, tmpfs among them, are not: the
    system can take those back, and a writer that maps its file would else seem to need what one that does not map it
    leaves in the page cache.
    """

    amount = 0

    def __enter__(self) -> Self:
        if not _STATUS.exists():
            raise NotHereError("memory is counted by Linux only")
        gc.collect()
        # What was freed before goes back to the system: the save would take it again, and it would not show.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
        command = [sys.executable, "-S", "-c", _SAMPLER, str(os.getpid())]
        self._sampler = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        output = self._sampler.stdout
        if output is None or output.readline() != "watching\n":
            raise BenchError("memory cannot be watched: another process may not read this one's /proc")
        self._before = _anonymous()
        return self

    def __exit__(self, *_error: object) -> None:
        output, _ = self._sampler.communicate()
        self.amount = int(output) - self._before


def _anonymous() -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def _counters() -> tuple[int, int, int]:
    entries = (line.split(": ") for line in _IO.read_text(encoding="utf-8").splitlines())
    counted = {name: int(value) for name, value in entries}
    return counted["wchar"], _sent(), counted["write_bytes"]


def _sent() -> int:
    """Bytes that the open TCP sockets of this process have sent."""
    total = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if os.readlink(entry).startswith("socket:"):  # noqa: PTH115 - the target is no path
                total += _sent_through(int(entry.name))
    return total


def _sent_through(descriptor: int) -> int:
    """Bytes that a socket has sent; an OSError says that it is none of TCP."""
    # A copy of the descriptor: closing that leaves the socket itself open.
    with socket.socket(fileno=os.dup(descriptor)) as one:
        information = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(information) < _RETRANSMITTED + 8:
        raise NotHereError("this system is too old to say what went out through TCP")
    sent, again = (struct.unpack_from("Q", information, offset)[0] for offset in (_SENT, _RETRANSMITTED))
    return int(sent - again)
