# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that writes down which lines of `addons` each test runs, in its forks and threads too.

One file a test in the directory that ``ADDONS_SPEC_HITS`` names: the test and the seconds that it took on the first
line, then a line of `addons` a line, as ``file.py 12``.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import operator
import os
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import addons

DIRECTORY = "ADDONS_SPEC_HITS"
_PACKAGE = str(Path(addons.__file__).parent) + os.sep


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of which an earlier run has written, where neither they nor `addons` have changed since."""
    changed = max(path.stat().st_mtime for path in Path(_PACKAGE).glob("*.py"))
    old = {item for item in items if _written(item) > max(changed, item.path.stat().st_mtime)}
    items[:] = [item for item in items if item not in old]
    config.hook.pytest_deselected(items=list(old))


def _file(item: pytest.Item) -> Path:
    return Path(os.environ[DIRECTORY], hashlib.sha256(item.nodeid.encode()).hexdigest()[:16])


def _written(item: pytest.Item) -> float:
    return _file(item).stat().st_mtime if _file(item).exists() else 0.0


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Trace the lines of one test; a fork of it goes on writing to the same file."""
    path = _file(item)
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
_ROUNDS = 5
_FORK = 0.05
"""Seconds that a test takes beside its own, so that one which takes none is not always first."""


def read(directory: Path) -> dict[str, list[Timed]]:
    """Line, as ``file.py 12`` -> the tests that run it, each with its seconds."""
    found: dict[str, list[Timed]] = {}
    for path in sorted(directory.iterdir()):
        first, *lines = path.read_text().splitlines()
        seconds, _, nodeid = first.partition(" ")
        for line in lines:
            found.setdefault(line, []).append((float(seconds), nodeid))
    return found


def covering(found: dict[str, list[Timed]], file: str) -> list[str]:
    """The tests that run something of a file, so that few of them, in their order, run all that any does.

    First all of the file itself, then all of `addons`, and that some times with those that are left; then the others,
    quick ones first. In a round the one comes next that runs most lines a second which none of the round has run.
    """
    of_file, runs, seconds = dict[str, int](), dict[str, int](), dict[str, float]()
    for at, (line, tests) in enumerate(found.items()):
        for took, test in tests:
            runs[test] = runs.get(test, 0) | 1 << at
            seconds[test] = took + _FORK
            if line.startswith(f"{file} "):
                of_file[test] = of_file.get(test, 0) | 1 << at
    ordered, left = list[str](), of_file
    for _ in range(_ROUNDS):
        ordered += _cover(left, seconds)
        left = {test: runs[test] for test in of_file.keys() - ordered}
    return ordered + sorted(left, key=lambda test: (seconds[test], test))


def _cover(runs: dict[str, int], seconds: dict[str, float]) -> list[str]:
    """Few of the tests that run all lines which any of them runs; the lines of each are the bits of a number."""
    missing, chosen = functools.reduce(operator.or_, runs.values(), 0), list[str]()
    # What a test adds only shrinks: one that still adds as much as when it was weighed is the best.
    waiting = sorted((-lines.bit_count() / seconds[test], test) for test, lines in runs.items())
    while missing:
        _, test = heapq.heappop(waiting)
        worth = -(runs[test] & missing).bit_count() / seconds[test]
        if waiting and worth > waiting[0][0]:
            heapq.heappush(waiting, (worth, test))
        else:
            chosen.append(test)
            missing &= ~runs[test]
    return chosen
