# SPDX-License-Identifier: Apache-2.0
"""What an implementation is known to fail, with reasons; kept in a TOML file beside its binding.

::

    [[known_failure]]
    clause = "TGT-004"
    cases = ["test_wrappers_leave_no_trace[compile]"]  # optional: these tests, instead of every test of the clause
    reason = "the prefix is removed at the front only"
    example = "Linear in Linear, inner one compiled" # optional: the smallest input that fails
    issue = "org/project#12"                        # optional
    versions = ">=0.5,<0.7"                         # optional: of the implementation

The list is kept honest from both sides: a case that matches no test is an error, and so is a test that passes
though an entry is about it. So an entry hides nothing: one without ``cases`` says that every test of the clause
fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = "known_failure"
CASES = "cases"


class KnownFailureError(ValueError):
    """A list of known failures is malformed or contradicts itself."""


@dataclass(frozen=True)
class KnownFailure:
    """One clause, or one case of it, that an implementation is known to fail."""

    clause: str
    reason: str
    case: str | None = None
    example: str | None = None
    issue: str | None = None
    versions: str | None = None

    def holds_for(self, version: str) -> bool:
        """Whether the entry speaks about that version of the implementation.

        Raises:
            KnownFailureError: the entry has a version range, and the implementation's version is none.
        """
        if self.versions is None:
            return True
        try:
            return SpecifierSet(self.versions).contains(Version(version), prereleases=True)
        except InvalidVersion as error:
            raise KnownFailureError(
                f"{self}: has versions {self.versions!r}, but the implementation's version is {version!r}"
            ) from error

    def matches(self, nodeid: str, clauses: Iterable[str]) -> bool:
        """Whether the entry is about that test, which carries those clauses."""
        if self.clause not in clauses:
            return False
        test = name_of_test(nodeid)
        return self.case is None or self.case in {test, test.partition("[")[0]}

    def __str__(self) -> str:
        """The entry as messages name it."""
        return self.clause if self.case is None else f"{self.clause} {self.case}"


def name_of_test(nodeid: str) -> str:
    """The last part of a test id, its parameters included: ``test_x[a::b]`` of ``test_file.py::test_x[a::b]``."""
    head, bracket, parameters = nodeid.partition("[")
    return head.rpartition("::")[2] + bracket + parameters


def read_known_failures(path: Path) -> tuple[KnownFailure, ...]:
    """The entries of a TOML file.

    Raises:
        KnownFailureError: the file is malformed, or entries of one version range contradict each other.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise KnownFailureError(f"{path.name}: {error}") from error
    if unknown := sorted(content.keys() - {TABLE}):
        raise KnownFailureError(f"{path.name}: unknown table {unknown[0]!r}, expected [[{TABLE}]]")
    entries = tuple(entry for raw in content.get(TABLE, []) for entry in _entries(path.name, raw))
    for versions in {entry.versions for entry in entries}:
        check_consistent(entry for entry in entries if entry.versions in (None, versions))
    return entries


def check_consistent(entries: Iterable[KnownFailure]) -> None:
    """Refuse a clause that is listed both as a whole and case by case, and an entry that occurs twice.

    For entries that hold at the same time: one version may fail a clause of which another fails a case.

    Raises:
        KnownFailureError: naming the clause.
    """
    seen: dict[str, set[str | None]] = {}
    for entry in entries:
        cases = seen.setdefault(entry.clause, set())
        # The same entry may stand there once for each of several version ranges.
        if entry.case in cases and entry.versions is None:
            raise KnownFailureError(f"{entry}: listed twice")
        cases.add(entry.case)
    for clause, cases in sorted(seen.items()):
        if None in cases and len(cases) > 1:
            raise KnownFailureError(f"{clause}: listed as a whole and case by case; keep one form")


def passing(entries: Iterable[KnownFailure], passed: Iterable[tuple[str, tuple[str, ...]]]) -> list[str]:
    """What to say of the entries that are about tests which passed, given as (id, clauses)."""
    tests = list(passed)
    found = [
        (entry, [name_of_test(test) for test, clauses in tests if entry.matches(test, clauses)]) for entry in entries
    ]
    return [
        f"known failure that passes: {entry}: remove it, or name the cases that fail; {names[0]} passes"
        + (f", and {len(names) - 1} more" if names[1:] else "")
        for entry, names in found
        if names
    ]


def unmatched(entries: Iterable[KnownFailure], collected: Iterable[tuple[str, tuple[str, ...]]]) -> list[KnownFailure]:
    """The entries that are about none of the collected tests, given as (id, clauses)."""
    tests = list(collected)
    return [entry for entry in entries if not any(entry.matches(nodeid, clauses) for nodeid, clauses in tests)]


def _entries(file: str, raw: Any) -> list[KnownFailure]:
    """One entry for the clause, or one for each of its cases."""
    allowed = {field.name for field in fields(KnownFailure)} - {"case"} | {CASES}
    if not isinstance(raw, dict) or raw.keys() - allowed:
        raise KnownFailureError(f"{file}: an entry has the keys {', '.join(sorted(allowed))}; found {raw!r}")
    for key in ("clause", "reason"):
        if not raw.get(key):
            raise KnownFailureError(f"{file}: an entry without {key!r}: {raw!r}")
    cases = raw.get(CASES, [None])
    if (
        not isinstance(cases, list)
        or not cases
        or (CASES in raw and any(not isinstance(c, str) or not c for c in cases))
    ):
        raise KnownFailureError(f"{file}: {CASES!r} must be a list of names of tests in {raw!r}: leave it out for all")
    texts = {key: value for key, value in raw.items() if key != CASES}
    if wrong := sorted(key for key, value in texts.items() if not isinstance(value, str)):
        raise KnownFailureError(f"{file}: {wrong[0]!r} is no text in {raw!r}")
    try:
        SpecifierSet(raw.get("versions", ""))
    except InvalidSpecifier as error:
        raise KnownFailureError(f"{file}: {raw['versions']!r} is no version specifier") from error
    return [KnownFailure(**texts, case=case) for case in cases]
