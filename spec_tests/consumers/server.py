# SPDX-License-Identifier: Apache-2.0
"""One process that starts the clean processes of many: xdist's workers, or the forks of the runner of mutants.

Importing the readers takes seconds, and each process that starts clean ones by itself pays for it once. The server
imports them when it is first asked. It only hands calls and answers on, and ends with the process that started it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection, Listener
from pathlib import Path

from spec_tests.consumers.clean_process import called

_STARTED: list[subprocess.Popen[bytes]] = []
"""Kept: the server ends when nobody holds its input any more."""


def started() -> tuple[str, bytes]:
    """Start a server; returns what processes give to `spec_tests.consumers.clean_process.use`."""
    key = os.urandom(32)
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    server = subprocess.Popen(
        [sys.executable, "-m", __spec__.name],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # of readers' bars of progress; their errors are answers
    )
    assert server.stdin
    assert server.stdout
    server.stdin.write(key)
    server.stdin.flush()
    with server.stdout as said:
        address = said.readline().decode().strip()
    _STARTED.append(server)
    return address, key


def main() -> None:
    """Answer, in a thread each, whoever knows the key, which is read from the input; end where the input does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal: those that ask end the run
    listener = Listener(family="AF_UNIX", backlog=64, authkey=sys.stdin.buffer.read(32))
    print(listener.address, flush=True)
    os.dup2(2, 1)  # nobody reads further: what a reader prints would break it
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    sys.stdin.buffer.read()


def _serve(listener: Listener) -> None:
    while True:
        threading.Thread(target=_hand_on, args=(listener.accept(),), daemon=True).start()


def _hand_on(line: Connection) -> None:
    with line:
        line.send_bytes(called(line.recv_bytes()))


if __name__ == "__main__":
    main()
