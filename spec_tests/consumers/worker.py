# SPDX-License-Identifier: Apache-2.0
"""A worker of xdist as a fork of the readers' server: what each worker would import for itself is there already.

xdist starts a worker by a command, ``python -u -c CODE``, and talks to its streams. `spec_tests.consumers.stand_in`
stands in for ``python`` there. It hands its streams, its environment and its directory to the server, whose fork runs
the code. The workers of a run then share the seed of hashes.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle
from types import ModuleType

from spec_tests.consumers.clean_process import forks


def run(line: Connection, code: str, environment: dict[str, str], directory: str) -> None:
    """In the server: run the code on the streams that come over the line; returns when it or the other end is gone."""
    streams = [Connection(recv_handle(line)) for _ in range(3)]
    worker = forks().Process(target=_become, args=(code, environment, directory, streams))
    worker.start()
    for stream in streams:
        stream.close()
    line.send_bytes(b"begun")
    if worker.sentinel not in wait([worker.sentinel, line]):
        worker.kill()  # it hangs, and xdist has killed what it had started: the other end
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
    multiprocessing.set_start_method(None, force=True)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    sys.argv = ["-c"]
    sys.modules["__main__"] = main_module = ModuleType("__main__")
    try:
        exec(code, main_module.__dict__)
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without
