# SPDX-License-Identifier: Apache-2.0
"""What came of each edit: a line as soon as one is not noticed, and a table a file at the end."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from spec_tests.mutation import judge
from spec_tests.mutation.edits import Edit

LISTED = "equivalent"
_OUTCOMES = (judge.KILLED, judge.SURVIVED, judge.CUT, judge.UNTESTED, LISTED, judge.NOT_SWAPPED)
_EVERY = 200
"""Results after which a line says how far the run is."""


class Killed:
    """The edits that tests noticed in an earlier run: the whole text of the edited file, as a hash, and the test."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
        self._known = dict(line.split(" ", 1) for line in lines)

    def __contains__(self, edit: Edit) -> bool:
        return _key(edit) in self._known

    def by(self, edit: Edit) -> str:
        """The test that noticed one of them."""
        return self._known[_key(edit)]

    def add(self, edit: Edit, test: str) -> None:
        """Keep one, at once: a run takes an hour, and may be ended."""
        self._known[_key(edit)] = test
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{_key(edit)} {test}\n")


def _key(edit: Edit) -> str:
    return hashlib.sha256(edit.source.encode()).hexdigest()[:32]


class Report:
    """Counts the outcomes of edits, and prints what is to be looked at.

    Args:
        chosen: the edits that the run is about.
        known: file, function, lines before and lines after of those that nobody can see.
        killed: those that an earlier run has judged.
    """

    def __init__(self, chosen: Sequence[Edit], known: set[tuple[str, str, str, str]], killed: Killed) -> None:
        self._chosen, self._known, self._killed = chosen, known, killed
        self._counts: dict[str, Counter[str]] = {}
        self._open = self._judged = 0

    def asks(self, edit: Edit, *, listed: bool) -> bool:
        """Whether tests have to say what they make of it; counts it where nobody need ask."""
        if edit in self._killed:
            self._count(edit, judge.KILLED)
        elif self._is_listed(edit) and not listed:
            self._count(edit, LISTED)
        else:
            return True
        return False

    def add(self, result: judge.Result) -> None:
        """Count one, and print it unless a test has noticed it, or nobody can."""
        edit, outcome = self._chosen[result.number], result.outcome
        self._judged += 1
        if self._is_listed(edit):
            outcome = f"{LISTED}, and noticed by {result.by}" if outcome == judge.KILLED else LISTED
        elif outcome == judge.KILLED:
            self._killed.add(edit, result.by)
        self._count(edit, outcome)
        if outcome not in {judge.KILLED, LISTED}:
            self._open += 1
            print(f"{outcome} ({result.ran} tests): {edit}", flush=True)
        if self._judged % _EVERY == 0:
            print(f"{self._judged} judged", flush=True)

    def end(self, asked: int) -> int:
        """Print the table; 0 only where each edit was noticed or is listed."""
        print(f"{'file':<22}" + "".join(f"{outcome:>17}" for outcome in _OUTCOMES))
        for file, found in [*sorted(self._counts.items()), ("all", sum(self._counts.values(), Counter()))]:
            print(f"{file:<22}" + "".join(f"{found[outcome]:>17}" for outcome in _OUTCOMES))
        if missing := asked - self._judged:
            print(f"{missing} edits were not judged")
        return int(bool(self._open or missing))

    def _is_listed(self, edit: Edit) -> bool:
        return (edit.file, edit.function, edit.before, edit.after) in self._known

    def _count(self, edit: Edit, outcome: str) -> None:
        self._counts.setdefault(edit.file, Counter())[outcome] += 1
