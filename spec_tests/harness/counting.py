# SPDX-License-Identifier: Apache-2.0
"""The ledger of a run: which tests there are, and how each went, from reports that arrive in any order."""

from __future__ import annotations

from collections.abc import Iterable

from spec_tests.harness.outcomes import Case, Status

PlannedTest = tuple[str, tuple[str, ...], str]
"""A collected test: its id, its clauses, and its status until it is reported. Plain data, which crosses processes."""

# A test that failed in its call and passed its teardown has failed.
_WORST_FIRST = (Status.FAILED, Status.SKIPPED, Status.PASSED)


class Ledger:
    """What was planned and what was reported, kept apart until both are complete.

    Under xdist the plan comes from the workers when they end, and a test whose worker crashed is reported by
    the controller, which knows nothing but its id.
    """

    def __init__(self) -> None:
        self._plan: dict[str, tuple[tuple[str, ...], Status]] = {}
        self._reported: dict[str, set[Status]] = {}

    def plan(self, tests: Iterable[PlannedTest]) -> None:
        """Add collected tests; workers that collected the same tests add nothing new."""
        for nodeid, clauses, status in tests:
            self._plan[nodeid] = (tuple(clauses), Status(status))

    def learn(self, nodeid: str, clauses: Iterable[str]) -> None:
        """Add a test that has been reported and was in no plan yet."""
        self._plan.setdefault(nodeid, (tuple(clauses), Status.NOT_RUN))

    def report(self, nodeid: str, status: Status) -> None:
        """Note how one phase of a test went."""
        self._reported.setdefault(nodeid, set()).add(status)

    @property
    def collected(self) -> list[tuple[str, tuple[str, ...]]]:
        """Every test of a clause, selected or not, sorted by id."""
        return sorted((nodeid, clauses) for nodeid, (clauses, _) in self._plan.items() if clauses)

    def cases(self) -> list[Case]:
        """Every test of a clause and how it went, sorted by id."""
        return [Case(nodeid, clauses, self._status(nodeid)) for nodeid, clauses in self.collected]

    def failures_outside_clauses(self) -> list[str]:
        """The ids of what failed and is no test of a clause, sorted."""
        of_clauses = {nodeid for nodeid, _ in self.collected}
        failed = {nodeid for nodeid, statuses in self._reported.items() if Status.FAILED in statuses}
        return sorted(failed - of_clauses)

    def _status(self, nodeid: str) -> Status:
        reported = self._reported.get(nodeid, set())
        for status in _WORST_FIRST:
            if status in reported:
                return status
        return self._plan[nodeid][1]
