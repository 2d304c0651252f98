# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests clauses --where ID`` and ``--json``: every place that a clause's id stands at.

Files are read, and nothing is imported: the answer takes no longer than a search.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from spec_tests.harness.clauses import Clause
from spec_tests.harness.paths import area_tests, package_dir, spec_dir

BUNDLED = "addons"
"""The package whose lines are looked at."""


@dataclass(frozen=True)
class Place:
    """A line of a file, and what stands there: a sentence, the name of a test or a mutant, or code."""

    path: Path
    line: int
    what: str


def report(clause: Clause) -> list[str]:
    """The places of a clause, a line each, with paths from the working directory where it is above them."""
    kinds: list[tuple[str, Callable[[str], Iterable[Place]]]] = [
        ("spec", lambda clause_id: in_spec(clause_id, clause.file)),
        ("test", in_tests),
        ("mutant", in_mutants),
        ("code", in_code),
    ]
    lines = []
    for kind, find in kinds:
        places = list(find(clause.id))
        lines += [f"{kind:7} {_shown(place.path)}:{place.line}  {place.what}" for place in places]
        lines += [] if places else [f"{kind:7} none"]
    return lines


def as_data(clause: Clause, executed: Mapping[str, int]) -> dict[str, Any]:
    """A clause as plain data, with its tests and mutants, and how many cases ``executed`` (by clause) says it had."""
    found = {
        "id": clause.id,
        "keyword": clause.keyword,
        "level": clause.level,
        "since": clause.since,
        "needs": list(clause.needs),
        "text": clause.text,
        "file": clause.file,
        "tests": [f"{place.path.name}::{place.what}" for place in in_tests(clause.id)],
        "mutants": [place.what for place in in_mutants(clause.id)],
    }
    return found | ({"cases": executed[clause.id]} if clause.id in executed else {})


def in_spec(clause_id: str, file: str) -> Iterator[Place]:
    """The bullet of the clause."""
    path = spec_dir() / file
    for number, line in _numbered(path):
        if line.startswith(f"- **{clause_id}**"):
            yield Place(path, number, line.removeprefix("- "))


def in_tests(clause_id: str) -> Iterator[Place]:
    """The tests that are marked with the clause, or have a case that is."""
    for path in area_tests():
        yield from _functions(path, "clause").get(clause_id, ())


def in_mutants(clause_id: str) -> Iterator[Place]:
    """The mutants that a test of the clause has to catch."""
    for path in sorted((package_dir() / "mutants").glob("*.py")):
        yield from _functions(path, "mutant", "kills").get(clause_id, ())


def in_code(clause_id: str) -> Iterator[Place]:
    """The lines of the bundled implementation that name the clause."""
    spec = importlib.util.find_spec(BUNDLED)
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).rglob("*.py")):
            yield from _lines(path).get(clause_id, ())


def _named(line: str) -> set[str]:
    """The clauses that a line names, one by one or as ``ADP-001 to ADP-009``."""
    found = re.finditer(r"\b([A-Z]{2,5})-(\d{3})\b(?: to \1-(\d{3})\b)?", line)
    return {
        f"{area}-{number:03}"
        for area, first, last in (match.groups() for match in found)
        for number in range(int(first), int(last or first) + 1)
    }


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    return enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)


@cache
def _lines(path: Path) -> dict[str, list[Place]]:
    """Clause -> the lines that name it."""
    found: dict[str, list[Place]] = {}
    for number, line in _numbered(path):
        for clause_id in _named(line):
            found.setdefault(clause_id, []).append(Place(path, number, line.strip()))
    return found


@cache
def _functions(path: Path, called: str, keyword: str | None = None) -> dict[str, list[Place]]:
    """Clause -> the functions with a decorator that gives it to calls of that name, as `_arguments` finds it."""
    found: dict[str, list[Place]] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for clause_id in _arguments(node, called, keyword) if isinstance(node, ast.FunctionDef) else ():
            found.setdefault(clause_id, []).append(Place(path, node.lineno, node.name))
    return found


def _arguments(function: ast.FunctionDef, called: str, keyword: str | None) -> set[str]:
    """The texts that the function's decorators give to calls of that name: to a keyword, or by position."""
    calls = [
        node for decorator in function.decorator_list for node in ast.walk(decorator) if isinstance(node, ast.Call)
    ]
    texts: set[str] = set()
    for call in calls:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name == called:
            given = call.args if keyword is None else [one.value for one in call.keywords if one.arg == keyword]
            inner = [node for argument in given for node in ast.walk(argument)]
            texts |= {node.value for node in inner if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return texts


def _shown(path: Path) -> str:
    here = Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)
