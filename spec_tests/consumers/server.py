# SPDX-License-Identifier: Apache-2.0
"""One process that starts the clean processes of many: xdist's workers, or the forks of the runner of mutants.

Importing the readers takes seconds, and each process that starts clean ones by itself pays for it once. The server
imports them when it is first asked, or at once. It only hands calls and answers on, starts workers of xdist
(`spec_tests.consumers.worker`), and ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path

from spec_tests.consumers import stand_in, worker
from spec_tests.consumers.clean_process import called
from spec_tests.harness.environment import ReaderError

AT_ONCE = "--at-once"
_STARTED: list[subprocess.Popen[bytes]] = []
"""Kept: the server ends when nobody holds its input any more."""


def started(*, at_once: bool = False) -> tuple[str, bytes]:
    """Start a server; returns what processes give to `spec_tests.consumers.clean_process.use`.

    With ``at_once`` it imports the readers without being asked, while this process does something else.

    Raises:
        ReaderError: it did not start; what it said is on this process's stderr.
    """
    key = os.urandom(32)
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    server = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, *([AT_ONCE] if at_once else [])],
        env={**os.environ, "PYTHONPATH": paths, stand_in.KEY: key.hex()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout
    with server.stdout as said:
        address = said.readline().decode().strip()
    if not address:
        raise ReaderError(f"the server of the readers must start, got its exit code {server.wait()}")
    _STARTED.append(server)
    return address, key


def main() -> None:
    """Answer, in a thread each, whoever knows the key; end where the input does, which nothing is read from."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal: those that ask end the run
    listener = Listener(family="AF_UNIX", backlog=64, authkey=bytes.fromhex(os.environ[stand_in.KEY]))
    print(listener.address, flush=True)
    # What readers print, bars of progress for the most, nobody reads; their errors are answers.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    if AT_ONCE in sys.argv:
        threading.Thread(target=called, args=(pickle.dumps((int, ())),), daemon=True).start()
    sys.stdin.buffer.read()


def _serve(listener: Listener) -> None:
    while True:
        # Who asks may be killed before it has said who it is: the others are answered all the same.
        with contextlib.suppress(EOFError, OSError, AuthenticationError):
            threading.Thread(target=_hand_on, args=(listener.accept(),), daemon=True).start()


def _hand_on(line: Connection) -> None:
    with line:
        asked = line.recv()
        if isinstance(asked, bytes):
            line.send(called(asked))
        else:
            worker.run(line, *asked)


if __name__ == "__main__":
    main()
