# SPDX-License-Identifier: Apache-2.0
"""Which clauses a run is about, and which tests that takes."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from spec_tests.harness.clauses import LEVELS, Clause
from spec_tests.harness.outcomes import Conditions, Outcome, Status


@dataclass(frozen=True)
class Selection:
    """What was asked for; nothing means everything.

    Attributes:
        areas: area codes.
        clauses: clause ids.
        level: that level and those it includes.
    """

    areas: tuple[str, ...] = ()
    clauses: tuple[str, ...] = ()
    level: str | None = None

    @property
    def partial(self) -> bool:
        """Whether clauses of the level are left out, so that nothing can be said about the level."""
        return bool(self.areas or self.clauses)

    def includes(self, clause: Clause) -> bool:
        """Whether the run is about that clause."""
        return (
            (not self.areas or clause.area in self.areas)
            and (not self.clauses or clause.id in self.clauses)
            and (self.level is None or _height(clause) <= LEVELS.index(self.level))
        )

    def wants(self, clauses: Collection[Clause], conditions: Conditions, needs: Collection[str] = ()) -> Status:
        """Whether a test of these clauses is to be run: the status it has before anything is reported of it.

        A test belongs to the highest of its clauses' levels, and needs what any of its clauses needs, besides
        what it needs itself.
        """
        if not clauses:
            return Status.DESELECTED if self.partial or self.level else Status.NOT_RUN
        if not any(self.includes(clause) for clause in clauses):
            return Status.DESELECTED
        if self.level is not None and max(map(_height, clauses)) > LEVELS.index(self.level):
            return Status.DESELECTED
        exempt = {conditions.exempt(clause) for clause in clauses}
        if Outcome.NOT_APPLICABLE in exempt:
            return Status.DESELECTED
        if Outcome.NOT_CLAIMED in exempt or not conditions.claims.issuperset(needs):
            return Status.UNCLAIMED
        return Status.NOT_RUN

    def problem(self, clauses: Mapping[str, Clause]) -> str | None:
        """What is wrong with the request, if anything: an area or a clause that does not exist."""
        areas = {clause.area for clause in clauses.values()}
        if unknown := sorted(set(self.areas) - areas):
            return f"--area {unknown[0]}: no such area; there are {', '.join(sorted(areas))}"
        if unknown := sorted(set(self.clauses) - clauses.keys()):
            return f"--clause {unknown[0]}: no such clause; {nearest(unknown[0], clauses)}"
        return None


def listed(values: Iterable[str]) -> tuple[str, ...]:
    """The values of an option that may be repeated and may have several in one: ``A,B`` as ``A`` and ``B``."""
    return tuple(name for value in values for name in value.split(","))


def nearest(clause_id: str, clauses: Iterable[str]) -> str:
    """The existing ids that somebody may have meant, as the end of a message."""
    found = difflib.get_close_matches(clause_id, sorted(clauses), n=3, cutoff=0.5)
    return f"nearest: {', '.join(found)}" if found else "none is like it"


def _height(clause: Clause) -> int:
    return LEVELS.index(clause.level)
