# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that writes down which lines of `addons` each test runs, in its forks and threads too.

One file a test in the directory that ``ADDONS_SPEC_HITS`` names: the test and the seconds that it took on the first
line, then a line of `addons` a line, as ``file.py 12``.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import addons

DIRECTORY = "ADDONS_SPEC_HITS"
_PACKAGE = str(Path(addons.__file__).parent) + os.sep


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Trace the lines of one test; a fork of it goes on writing to the same file."""
    name = hashlib.sha256(item.nodeid.encode()).hexdigest()[:16]
    path = Path(os.environ[DIRECTORY], name)
    descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_WRONLY)
    seen: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_PACKAGE):
            return None
        if event == "line" and (name, frame.f_lineno) not in seen:
            seen.add((name, frame.f_lineno))
            os.write(descriptor, f"{name.removeprefix(_PACKAGE)} {frame.f_lineno}\n".encode())
        return trace

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
            lines = sorted(set(path.read_text().splitlines()))
            path.write_text("\n".join([f"{time.monotonic() - started:.3f} {item.nodeid}", *lines]))


Timed = tuple[float, str]


def read(directory: Path) -> dict[str, list[Timed]]:
    """Line, as ``file.py 12`` -> the tests that run it, each with its seconds."""
    found: dict[str, list[Timed]] = {}
    for path in sorted(directory.iterdir()):
        first, *lines = path.read_text().splitlines()
        seconds, _, nodeid = first.partition(" ")
        for line in lines:
            found.setdefault(line, []).append((float(seconds), nodeid))
    return found


def in_turns(tests: Iterable[Timed]) -> list[str]:
    """One case of each test first, and quick ones first."""
    turns: Counter[str] = Counter()
    keyed = []
    for seconds, nodeid in sorted(set(tests)):
        test = nodeid.partition("[")[0]
        keyed.append((turns[test], seconds, nodeid))
        turns[test] += 1
    return [nodeid for _, _, nodeid in sorted(keyed)]
