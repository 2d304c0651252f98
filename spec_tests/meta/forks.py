# SPDX-License-Identifier: Apache-2.0
"""Whole runs in processes forked from the test's own: they need not import torch and transformers again."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from spec_tests import __main__ as program
from spec_tests.mutants.children import Done, Job, run


def in_a_fork(call: Callable[[], int], output: Path) -> int:
    """Call it in a process of its own, with what it prints in the file; returns its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(forked(call, output), 0)[1])


def forked(call: Callable[[], int], output: Path) -> int:
    """As `in_a_fork`, but returns at once the process, for which somebody has to wait."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            torch.set_num_threads(1)
            gc.freeze()  # pytest collects at its end, which takes long among all that this process holds
            # What a shell has put into the background ignores Ctrl-C.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            lines = output.open("w", buffering=1)
            with lines, contextlib.redirect_stdout(lines), contextlib.redirect_stderr(lines):
                code = call()
        finally:
            os._exit(code)
    return pid


def program_in_a_fork(directory: Path, *arguments: str, path: str = "", **environment: str) -> tuple[int, str]:
    """The exit code of ``python -m spec_tests`` in that directory, and what it said; ``path`` is searched first."""

    def call() -> int:
        os.chdir(directory)
        os.environ.update(environment)
        sys.path[:0] = [path] * bool(path)
        return program.main(list(arguments))

    said = directory.with_name(f"{directory.name}-said")
    code = in_a_fork(call, said)
    return code, said.read_text(encoding="utf-8")


def script_in_a_fork(code: str, directory: Path, *paths: Path, **environment: str) -> tuple[int, str]:
    """The exit code of that Python code, run in the directory as a program is, to its exit; and what it printed."""

    def call() -> int:
        os.chdir(directory)
        os.environ.update(environment)
        tempfile.tempdir = None  # to be read off the environment
        sys.path[:0] = map(str, paths)
        atexit._clear()  # what this process has registered is its own
        exec(code, {"__name__": "__main__"})
        atexit._run_exitfuncs()
        return 0

    said = directory.with_name(f"{directory.name}-said")
    exit_code = in_a_fork(call, said)
    return exit_code, said.read_text(encoding="utf-8")


def conformance_in_a_fork(*arguments: str) -> Done:
    """What ``python -m spec_tests`` gives with these arguments."""
    (done,) = run([Job("run", arguments)], workers=1, timeout=120)
    return done
