# SPDX-License-Identifier: Apache-2.0
"""A worker of xdist as a fork of the readers' server: what each worker would import for itself is there already.

xdist starts a worker by a command, ``python -u -c CODE``, and talks to its streams. This module stands in for
``python`` there. It hands its streams, its environment and its directory to the server, whose fork runs the code,
and stays until that has ended.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shlex
import signal
import sys
from multiprocessing.connection import Client, Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from types import ModuleType

from spec_tests.consumers.clean_process import PRELOAD

KEY = "SERVER_OF_READERS_KEY"
"""The variable in which the server and this module find the key: a command line is everybody's to read."""


def command(address: str) -> str:
    """What to run in place of ``python``; the key of the server is in the environment."""
    return shlex.join([sys.executable, "-m", __spec__.name, address])


def main() -> None:
    """Have the server run the last argument, on the streams of this process."""
    address, code = sys.argv[1], sys.argv[-1]
    environment = {**os.environ}
    with Client(address, "AF_UNIX", bytes.fromhex(environment.pop(KEY))) as line:
        line.send((code, environment, str(Path.cwd())))
        for stream in range(3):
            send_handle(line, stream, None)
        with contextlib.suppress(EOFError):
            line.recv_bytes()


def run(line: Connection, code: str, environment: dict[str, str], directory: str) -> None:
    """In the server: run the code on the streams that come over the line, and return when it has ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    streams = [Connection(recv_handle(line)) for _ in range(3)]
    worker = context.Process(target=_become, args=(code, environment, directory, streams))
    worker.start()
    for stream in streams:
        stream.close()
    worker.join()


def _become(code: str, environment: dict[str, str], directory: str, streams: list[Connection]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    # Files that close their descriptor would do so when execnet puts others in their place.
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, buffering=1, closefd=False) for number, mode in enumerate("rww")
    )
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the server and what it forks ignore
    sys.argv = ["-c"]
    sys.modules["__main__"] = main_module = ModuleType("__main__")
    exec(code, main_module.__dict__)


if __name__ == "__main__":
    main()
