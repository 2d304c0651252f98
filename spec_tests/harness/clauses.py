# SPDX-License-Identifier: Apache-2.0
r"""The clauses of the specification, read from ``spec/*.md``.

The text of a clause exists once, in Markdown that people read. An area is one file, whose first heading
ends with the area's code in parentheses. A clause is a bullet and the indented lines below it::

    # Target modules (TGT)

    - **TGT-004** (MUST, contract, since 1.0) One observable sentence.
      Why, and the source.

Further items in the parentheses, separated by a comma and a space: ``needs NAME`` (the capability that an
implementation has to claim) and ``applies PACKAGE SPECIFIER`` (the versions for which the clause holds, as
in ``applies transformers >=5,<6``). A line ``Untestable: reason`` below the bullet says why there is no test.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from spec_tests.harness.paths import spec_dir

KEYWORDS = ("MUST", "SHOULD")
LEVELS = ("contract", "extension", "hardening")
"""From what everybody has to do to what known implementations lack; a level includes those before it."""

_HEADING = re.compile(r"# .*\((?P<area>[A-Z]{2,5})\)\s*")
_CLAUSE = re.compile(r"- \*\*(?P<id>(?P<area>[A-Z]{2,5})-\d{3})\*\* \((?P<items>[^()]*)\) (?P<text>\S.*)")
# A bullet that somebody meant as a clause: bold at its start, or an id where a clause has it.
_LOOKS_LIKE_CLAUSE = re.compile(r"\s*[-*+] *(\*\*|[A-Z]{2,5}-\d+\b)")
_UNTESTABLE = "Untestable:"


class SpecError(ValueError):
    """The text of the specification is malformed; the message names file and line."""


@dataclass(frozen=True)
class Applies:
    """The versions of a package for which a clause holds."""

    package: str
    specifier: str

    def met_by(self, version: str | None) -> bool:
        """Whether a clause with this condition holds for that version (None: not installed)."""
        return version is not None and SpecifierSet(self.specifier).contains(Version(version), prereleases=True)


@dataclass(frozen=True)
class Clause:
    """One sentence of the specification."""

    id: str
    area: str
    keyword: str
    level: str
    since: str
    needs: tuple[str, ...]
    applies: tuple[Applies, ...]
    text: str
    why: str
    untestable: str | None
    file: str


def read_clauses(directory: Path) -> dict[str, Clause]:
    """All clauses of a directory of Markdown files (``README.md`` apart), sorted by id.

    Raises:
        SpecError: a file or a clause is malformed, or an id occurs twice.
    """
    clauses: dict[str, Clause] = {}
    for path in sorted(directory.glob("*.md")):
        if path.name == "README.md":
            continue
        for clause in _read_area(path):
            if clause.id in clauses:
                raise SpecError(f"{path.name}: {clause.id} occurs twice, first in {clauses[clause.id].file}")
            clauses[clause.id] = clause
    return dict(sorted(clauses.items()))


@cache
def load_clauses(directory: Path | None = None) -> dict[str, Clause]:
    """`read_clauses` of the specification, or of another directory; read once a process."""
    return read_clauses(directory if directory is not None else spec_dir())


def spec_version(clauses: Mapping[str, Clause]) -> str:
    """The version of the specification: that of its newest clause."""
    return max((clause.since for clause in clauses.values()), key=Version, default="0.0")


def _read_area(path: Path) -> list[Clause]:
    lines = path.read_text(encoding="utf-8").splitlines()
    area = _area(path, lines)
    clauses: list[Clause] = []
    in_code = False
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and _LOOKS_LIKE_CLAUSE.match(line):
            clauses.append(_read_clause(f"{path.name}:{number}", path.name, area, line, _details(lines[number:])))
    return clauses


def _area(path: Path, lines: list[str]) -> str:
    heading = next((line for line in lines if line.startswith("#")), "")
    match = _HEADING.fullmatch(heading)
    if match is None:
        raise SpecError(f"{path.name}: the first heading does not end with an area code, as in '# Targets (TGT)'")
    return match["area"]


def _details(following: list[str]) -> list[str]:
    details: list[str] = []
    for line in following:
        if not line.startswith("  ") or not line.strip():
            break
        details.append(line.strip())
    return details


def _read_clause(where: str, file: str, area: str, line: str, details: list[str]) -> Clause:
    match = _CLAUSE.fullmatch(line.rstrip())
    if match is None:
        raise SpecError(f"{where}: not a clause; expected '- **{area}-001** (MUST, contract, since 1.0) text'")
    if match["area"] != area:
        raise SpecError(f"{where}: {match['id']} stands in the file of area {area}")
    items = match["items"].split(", ")
    keyword, level, since, *more = items + [""] * (3 - len(items))
    if keyword not in KEYWORDS:
        raise SpecError(f"{where}: unknown keyword {keyword!r}, expected one of {', '.join(KEYWORDS)}")
    if level not in LEVELS:
        raise SpecError(f"{where}: unknown level {level!r}, expected one of {', '.join(LEVELS)}")
    if not re.fullmatch(r"since \d+\.\d+", since):
        raise SpecError(f"{where}: expected 'since X.Y' as third item, found {since!r}")
    needs, applies = _conditions(where, more)
    untestable = [detail.removeprefix(_UNTESTABLE).strip() for detail in details if detail.startswith(_UNTESTABLE)]
    if len(untestable) > 1 or "" in untestable:
        raise SpecError(f"{where}: expected one '{_UNTESTABLE} reason'")
    why = " ".join(detail for detail in details if not detail.startswith(_UNTESTABLE))
    if not why:
        raise SpecError(f"{where}: {match['id']} does not say why, in indented lines below it")
    return Clause(
        id=match["id"],
        area=area,
        keyword=keyword,
        level=level,
        since=since.removeprefix("since "),
        needs=needs,
        applies=applies,
        text=match["text"].strip(),
        why=why,
        untestable=untestable[0] if untestable else None,
        file=file,
    )


def _conditions(where: str, items: list[str]) -> tuple[tuple[str, ...], tuple[Applies, ...]]:
    needs: list[str] = []
    applies: list[Applies] = []
    for item in items:
        match item.split(" ", 2):
            case ["needs", name]:
                needs.append(name)
            case ["applies", package, specifier]:
                applies.append(_applies(where, package, specifier))
            case _:
                raise SpecError(f"{where}: unknown item {item!r}, expected 'needs NAME' or 'applies PACKAGE SPEC'")
    return tuple(needs), tuple(applies)


def _applies(where: str, package: str, specifier: str) -> Applies:
    try:
        SpecifierSet(specifier)
    except InvalidSpecifier as error:
        raise SpecError(f"{where}: {specifier!r} is no version specifier") from error
    return Applies(package, specifier)
