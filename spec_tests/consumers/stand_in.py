# SPDX-License-Identifier: Apache-2.0
"""What xdist starts in place of ``python`` for a worker: it has the readers' server run the code instead.

It is run by its path, and needs nothing but Python: a worker finds its modules where xdist says.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from multiprocessing.reduction import send_handle
from pathlib import Path

KEY = "SERVER_OF_READERS_KEY"
"""The variable in which the server and this program find the key: a command line is everybody's to read."""


def command(address: str) -> str:
    """What to run in place of ``python``; the key of the server has to be in the environment."""
    return shlex.join([sys.executable, "-I", __file__, address])


def main() -> None:
    """Have the server run the last argument as Python's ``-c``, on the streams of this process, and wait for its end.

    Where there is no server any more, this process becomes the Python that was asked for.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the worker as well, which ends the run
    key, begun = os.environ.pop(KEY), False
    # No server, or one that ends now: only before the worker has begun may another take its streams.
    with (
        contextlib.suppress(AuthenticationError, EOFError, OSError),
        Client(sys.argv[1], "AF_UNIX", bytes.fromhex(key)) as line,
    ):
        line.send((sys.argv[-1], dict(os.environ), str(Path.cwd())))
        for stream in range(3):
            send_handle(line, stream, None)
        begun = bool(line.recv_bytes())
        line.recv_bytes()
    if begun:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])


if __name__ == "__main__":
    main()
