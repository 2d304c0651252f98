# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that runs no test itself: for each edit it forks, puts it in, and runs the tests that reach it.

The plan comes in the file that ``ADDONS_SPEC_PLAN`` names, and a line of JSON an edit goes to the one beside it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

import addons
from spec_tests.consumers import clean_process, server
from spec_tests.mutation.edits import Edit
from spec_tests.mutation.swap import Functions, NotSwappedError, functions, swap
from spec_tests.mutation.words import Words

PLAN = "ADDONS_SPEC_PLAN"
KILLED, SURVIVED, CUT, UNTESTED, NOT_SWAPPED = "killed", "survived", "survived so far", "no test", "not put in"
PATIENCE = 60.0
"""Seconds for one test: one that takes longer hangs, and that kills the edit."""

_KILLERS = 3
"""What killed an edit of a function last is asked first about the next one of it: so many tests."""


@dataclass(frozen=True)
class Result:
    """What came of one edit: the outcome, by which test, how many ran, and in which time."""

    number: int
    outcome: str
    by: str
    ran: int
    seconds: float


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """Judge every edit of the plan."""
    plan = json.loads(Path(os.environ[PLAN]).read_text(encoding="utf-8"))
    if not clean_process.server_in_use():
        clean_process.use(*server.started())  # one for all forks: each would start its own, which takes six seconds
    items, sound = {item.nodeid: item for item in session.items}, Sound(plan["seconds"])
    with Path(os.environ[PLAN]).with_suffix(".results").open("a", encoding="utf-8") as results:
        for number, edit, tests, first in plan["edits"]:
            found = [items[test] for test in dict.fromkeys([*first, *tests]) if test in items]
            judged = sound.judged(number, Edit(**edit), found, first)
            results.write(json.dumps(asdict(judged)) + "\n")
            results.flush()
    return True


def read(path: Path) -> list[Result]:
    """The results of one plan, which may still grow."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [Result(**json.loads(line)) for line in lines if line.endswith("\n")]


class Sound:
    """Judges edits, and believes only a test that passes here without one: some need what is different here."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.live = functions()
        self.known: dict[str, bool] = {}
        self.killers: dict[tuple[str, str], list[str]] = {}
        self.words = Words()

    def judged(self, number: int, edit: Edit, items: list[pytest.Item], first: Sequence[str] = ()) -> Result:
        """The result by the tests that can be believed; those of ``first`` noticed the edit in an earlier run."""
        killers = self.killers.setdefault((edit.file, edit.function), [])
        while True:
            believed = [item for item in items if self.known.get(item.nodeid, True)]
            # In turns: the next of those about the function's clauses, and the next of all.
            own = [item for item in believed if _clauses_of(item) & {*edit.clauses}]
            pairs = itertools.zip_longest(own, believed)
            believed = [item for item in dict.fromkeys(itertools.chain.from_iterable(pairs)) if item is not None]
            believed = list(dict.fromkeys([*self.words.namesakes(edit, believed), *believed]))
            believed.sort(key=lambda item: (item.nodeid not in first, item.nodeid not in killers[-_KILLERS:]))
            result = _judged(number, edit, believed, self.budget, self.live)
            if result.by in killers:
                killers.remove(result.by)
            if not result.by or self.known.get(result.by):
                killers += [result.by] if result.by else []
                return result
            alone = [item for item in items if item.nodeid == result.by]
            self.known[result.by] = _judged(number, None, alone, self.budget, self.live).outcome == SURVIVED


def _clauses_of(item: pytest.Item) -> set[str]:
    return {name for mark in item.iter_markers("clause") for name in mark.args}


def _judged(number: int, edit: Edit | None, items: list[pytest.Item], budget: float, live: Functions) -> Result:
    """Run the tests in a fork until one fails, or until they have taken the seconds of the budget."""
    started = time.monotonic()
    if not items:
        return Result(number, UNTESTED, "", 0, 0.0)
    copy = Path(os.environ[PLAN]).with_suffix(".copy")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            _work(edit, copy, items, budget, live, writing)
        finally:
            os._exit(0)
    os.close(writing)
    outcome, ran, current = "", 0, ""
    with os.fdopen(reading, "rb", buffering=0) as lines:
        while not outcome:
            if not select.select([lines], [], [], PATIENCE)[0]:
                outcome = KILLED  # it hangs
                break
            line = lines.readline().decode()
            word, _, rest = line.strip().partition(" ")
            if word == "run":
                ran, current = ran + 1, rest
            elif word == "end":
                outcome = rest
            elif not line:
                outcome = KILLED if ran else NOT_SWAPPED  # the whole process is gone
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    shutil.rmtree(copy, ignore_errors=True)
    return Result(number, outcome, current if outcome == KILLED else "", ran, round(time.monotonic() - started, 2))


def _work(edit: Edit | None, copy: Path, items: list[pytest.Item], budget: float, live: Functions, line: int) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)

    def say(*words: str) -> None:
        os.write(line, (" ".join(words) + "\n").encode())

    try:
        if edit is not None:
            swap(edit, Path(addons.__file__).parent / edit.file, copy, live)
    except NotSwappedError:
        say("end", NOT_SWAPPED)
    else:
        say("end", _run(items, budget, say))


def _run(items: list[pytest.Item], budget: float, say: Callable[..., None]) -> str:
    until = time.monotonic() + budget
    for item in items:
        if time.monotonic() > until:
            return CUT
        say("run", item.nodeid)
        reports: list[Any] = runtestprotocol(item, nextitem=None, log=False)
        if any(report.failed for report in reports):
            return KILLED
    return SURVIVED
