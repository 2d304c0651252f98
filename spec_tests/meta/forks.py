# SPDX-License-Identifier: Apache-2.0
"""Whole runs in processes forked from the test's own: they need not import torch and transformers again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import torch

from spec_tests.mutants.children import Done, Job, run


def in_a_fork(call: Callable[[], int], output: Path) -> int:
    """Call it in a process of its own, with what it prints in the file; returns its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            torch.set_num_threads(1)
            with output.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                code = call()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def conformance_in_a_fork(*arguments: str) -> Done:
    """What ``python -m spec_tests`` gives with these arguments."""
    (done,) = run([Job("run", arguments)], workers=1, timeout=120)
    return done
