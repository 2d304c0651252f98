# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that writes down which functions of `addons` each test runs, in its forks and threads too.

One file a test in the directory that ``ADDONS_SPEC_HITS`` names: the test and the seconds that it took on the first
line, then a function a line, as ``file.py Class.name``.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import addons

DIRECTORY = "ADDONS_SPEC_HITS"
_PACKAGE = str(Path(addons.__file__).parent) + os.sep


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Trace the calls of one test; a fork of it goes on writing to the same file."""
    name = hashlib.sha256(item.nodeid.encode()).hexdigest()[:16]
    path = Path(os.environ[DIRECTORY], name)
    descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_WRONLY)
    seen: set[CodeType] = set()

    def trace(frame: FrameType, _event: str, _argument: Any) -> None:
        code = frame.f_code
        if code not in seen and code.co_filename.startswith(_PACKAGE):
            seen.add(code)
            function = code.co_qualname.partition(".<locals>")[0]
            os.write(descriptor, f"{code.co_filename.removeprefix(_PACKAGE)} {function}\n".encode())

    started, pid, before = time.monotonic(), os.getpid(), sys.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        return (yield)
    finally:
        sys.settrace(before)
        threading.settrace(None)  # type: ignore[arg-type]  # it takes None as sys.settrace does
        if os.getpid() == pid:
            os.close(descriptor)
            functions = sorted(set(path.read_text().splitlines()))
            path.write_text("\n".join([f"{time.monotonic() - started:.3f} {item.nodeid}", *functions]))


def read(directory: Path) -> dict[str, list[str]]:
    """Function, as ``file.py Class.name`` -> the tests that run it: one case of each first, quick ones first."""
    found: dict[str, list[tuple[float, str]]] = {}
    for path in sorted(directory.iterdir()):
        first, *functions = path.read_text().splitlines()
        seconds, _, nodeid = first.partition(" ")
        for function in functions:
            found.setdefault(function, []).append((float(seconds), nodeid))
    return {function: _by_turns(sorted(tests)) for function, tests in found.items()}


def _by_turns(tests: list[tuple[float, str]]) -> list[str]:
    turns: Counter[str] = Counter()
    keyed = []
    for seconds, nodeid in tests:
        test = nodeid.partition("[")[0]
        keyed.append((turns[test], seconds, nodeid))
        turns[test] += 1
    return [nodeid for _, _, nodeid in sorted(keyed)]
