# SPDX-License-Identifier: Apache-2.0
"""From the results of single tests to an outcome for each clause, and to the verdict on an implementation.

Pure functions: nothing here knows pytest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from spec_tests.harness.clauses import LEVELS, Clause
from spec_tests.harness.known_failures import KnownFailure


class Status(str, Enum):
    """How one test went."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """It could not do its work: what it needs is missing. That is no success."""
    NOT_RUN = "not run"
    """It was selected, but the run ended before it did."""
    DESELECTED = "deselected"
    UNCLAIMED = "unclaimed"
    """It was left out because it needs what the implementation does not claim."""


class Outcome(str, Enum):
    """What a run says about one clause."""

    PASS = "PASS"
    FAIL = "FAIL"
    XFAIL = "XFAIL"
    """It fails, and is known to."""
    STALE = "STALE"
    """A test passes that is listed as a known failure: the list is out of date, or too wide."""
    NOT_TESTABLE = "NOT-TESTABLE"
    """A test could not do its work, though the implementation claims what it needs."""
    NOT_CLAIMED = "NOT-CLAIMED"
    """It needs a capability that the implementation does not claim."""
    NOT_APPLICABLE = "NOT-APPLICABLE"
    """Its own condition on the versions of other packages is not met."""
    NOT_RUN = "NOT-RUN"


FAILING = (Outcome.FAIL, Outcome.STALE, Outcome.NOT_TESTABLE)


@dataclass(frozen=True)
class Case:
    """One test of one or several clauses, and how it went."""

    nodeid: str
    clauses: tuple[str, ...]
    status: Status

    @property
    def executed(self) -> bool:
        """Whether the test did run and reach a result."""
        return self.status in {Status.PASSED, Status.FAILED}


@dataclass(frozen=True)
class Conditions:
    """What a run is about: the implementation's claims and failures, and the versions it met."""

    claims: frozenset[str] = frozenset()
    known_failures: tuple[KnownFailure, ...] = ()
    versions: Mapping[str, str | None] | None = None

    def exempt(self, clause: Clause) -> Outcome | None:
        """Why the clause's tests are not run at all, if they are not."""
        if not all(condition.met_by((self.versions or {}).get(condition.package)) for condition in clause.applies):
            return Outcome.NOT_APPLICABLE
        if not self.claims.issuperset(clause.needs):
            return Outcome.NOT_CLAIMED
        return None


@dataclass(frozen=True)
class ClauseResult:
    """What a run says about one clause, and how many tests that rests on."""

    clause: Clause
    outcome: Outcome
    executed: int = 0
    failed: int = 0
    unclaimed: int = 0


@dataclass(frozen=True)
class Verdict:
    """What a run says about an implementation."""

    conformant: bool
    text: str
    levels: tuple[str, ...]
    """The levels whose every clause holds, without known failures and without missing claims."""
    executed: int
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def fold(clauses: Iterable[Clause], cases: Collection[Case], conditions: Conditions) -> list[ClauseResult]:
    """One result a clause, in the order of the clauses."""
    return [_fold_clause(clause, [c for c in cases if clause.id in c.clauses], conditions) for clause in clauses]


def _fold_clause(clause: Clause, cases: list[Case], conditions: Conditions) -> ClauseResult:
    if exempt := conditions.exempt(clause):
        return ClauseResult(clause, exempt)
    known = [entry for entry in conditions.known_failures if entry.clause == clause.id]
    claimed = [case for case in cases if case.status is not Status.UNCLAIMED]
    return ClauseResult(
        clause,
        _outcome(claimed, known) if claimed or not cases else Outcome.NOT_CLAIMED,
        executed=sum(case.executed for case in cases),
        failed=sum(case.status is Status.FAILED for case in cases),
        unclaimed=len(cases) - len(claimed),
    )


def _outcome(cases: list[Case], known: list[KnownFailure]) -> Outcome:
    """The outcome of one clause: the worst that its cases give, where nothing hides an unexpected failure."""
    expected = {case for case in cases if any(entry.matches(case.nodeid, case.clauses) for entry in known)}
    selected = [case for case in cases if case.status is not Status.DESELECTED]
    if any(case.status is Status.FAILED and case not in expected for case in selected):
        return Outcome.FAIL
    if any(case.status is Status.SKIPPED and case not in expected for case in selected):
        return Outcome.NOT_TESTABLE
    # One is enough: an entry that is about tests which pass would hide them when they fail.
    if any(case.status is Status.PASSED for case in expected):
        return Outcome.STALE
    if any(case.status in {Status.FAILED, Status.SKIPPED} for case in selected):
        return Outcome.XFAIL
    if not selected or any(case.status is Status.NOT_RUN for case in selected):
        return Outcome.NOT_RUN
    return Outcome.PASS


def verdict(
    results: Collection[ClauseResult],
    cases: Iterable[Case],
    *,
    strict: bool = False,
    partial: bool = False,
    problems: Iterable[str] = (),
) -> Verdict:
    """The verdict on a run.

    Args:
        results: the clauses that the run is about.
        cases: every test that the run is about.
        strict: SHOULD counts as MUST.
        partial: only some areas or clauses were asked for, which says nothing about a level.
        problems: what went wrong outside the clauses; any of these makes the run not conformant.
    """
    executed = sum(case.executed for case in cases)
    failures, warnings = list(problems), []
    for outcome in (*FAILING, Outcome.NOT_RUN):
        found = [r.clause for r in results if r.outcome is outcome and not _untested_for_a_reason(r)]
        failing, tolerated = _split(found, strict=strict or outcome is Outcome.STALE)
        failures += [f"{outcome.value}: {', '.join(failing)}"] if failing else []
        warnings += [f"{outcome.value} (SHOULD): {', '.join(tolerated)}"] if tolerated else []
    if executed == 0:
        failures.append("no test was executed")
    known = [result.clause.id for result in results if result.outcome is Outcome.XFAIL]
    if failures:
        text = "not conformant"
    else:
        text = "conformant"
        text += " for the selected clauses" if partial else ""
        text += f" except for known failures ({len(known)})" if known else ""
        unclaimed = sum(result.outcome is Outcome.NOT_CLAIMED for result in results)
        text += f"; clauses not claimed: {unclaimed}" if unclaimed else ""
    return Verdict(
        conformant=not failures,
        text=text,
        levels=_levels(results, strict=strict) if executed and not partial else (),
        executed=executed,
        reasons=tuple(failures),
        warnings=tuple(warnings),
    )


def _split(clauses: list[Clause], *, strict: bool) -> tuple[list[str], list[str]]:
    failing = [clause.id for clause in clauses if strict or clause.keyword == "MUST"]
    return failing, [clause.id for clause in clauses if clause.id not in failing]


def _untested_for_a_reason(result: ClauseResult) -> bool:
    return result.outcome is Outcome.NOT_RUN and result.clause.untestable is not None


def _levels(results: Collection[ClauseResult], *, strict: bool) -> tuple[str, ...]:
    reached: list[str] = []
    for level in LEVELS:
        binding = [r for r in results if r.clause.level == level and (strict or r.clause.keyword == "MUST")]
        holds = {r.outcome for r in binding if not _untested_for_a_reason(r)} <= {Outcome.PASS, Outcome.NOT_APPLICABLE}
        if not holds or not any(r.outcome is Outcome.PASS for r in binding):
            break
        reached.append(level)
    return tuple(reached)
