# SPDX-License-Identifier: Apache-2.0
"""From the report of a run against a mutant to what it says about the tests. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spec_tests.harness.clauses import load_clauses
from spec_tests.harness.outcomes import Outcome, Status
from spec_tests.mutants.registry import Mutant

# What a reader makes of wrong files, and the file that every save writes: they may fail whatever is broken.
ALWAYS = frozenset({"LOAD", "META"})


@dataclass(frozen=True)
class Judgement:
    """What came of one mutant.

    Attributes:
        survived: clauses that were to fail and did not.
        collateral: clauses that failed and lie outside the areas in which they may.
        problem: why there is nothing to judge by; empty when there is.
    """

    survived: tuple[str, ...] = ()
    collateral: tuple[str, ...] = ()
    problem: str = ""

    @property
    def caught(self) -> bool:
        """Whether the tests have found this fault, and nothing that is none."""
        return not (self.survived or self.collateral or self.problem)

    @property
    def text(self) -> str:
        """The word for it on a progress line."""
        if self.problem:
            return f"NO RESULT: {self.problem}"
        parts = [f"SURVIVED {', '.join(self.survived)}"] if self.survived else []
        parts += [f"COLLATERAL {', '.join(self.collateral)}"] if self.collateral else []
        return "; ".join(parts) or "caught"


def failed(report: Mapping[str, Any]) -> list[str]:
    """The clauses that failed in a run, by its JSON report."""
    return [clause for clause, result in report["clauses"].items() if result["outcome"] == Outcome.FAIL.value]


def tests(report: Mapping[str, Any]) -> list[str]:
    """The tests that failed in a run, by its JSON report."""
    return [test for test, status in report["cases"].items() if status == Status.FAILED.value]


def judged(one: Mutant, report: Mapping[str, Any]) -> Judgement:
    """What a run against a mutant says about the tests.

    A mutant is caught when every clause of ``kills`` has failed: a test that could not run, or that was left
    out, has caught nothing.
    """
    failing = set(failed(report))
    allowed = one.areas | set(one.also) | ALWAYS
    clauses = load_clauses()
    return Judgement(
        survived=tuple(clause for clause in one.kills if clause not in failing),
        collateral=tuple(sorted(clause for clause in failing if clauses[clause].area not in allowed)),
    )
