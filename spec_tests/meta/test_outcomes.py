# SPDX-License-Identifier: Apache-2.0
"""From single tests to outcomes, and from outcomes to the verdict."""

from __future__ import annotations

import pytest

from spec_tests.harness.clauses import Applies, Clause
from spec_tests.harness.known_failures import KnownFailure
from spec_tests.harness.outcomes import Case, ClauseResult, Conditions, Outcome, Status, fold, verdict

P, F, S, N, D, U = (
    Status.PASSED,
    Status.FAILED,
    Status.SKIPPED,
    Status.NOT_RUN,
    Status.DESELECTED,
    Status.UNCLAIMED,
)
WHOLE = KnownFailure("TGT-001", "known")
FIRST = KnownFailure("TGT-001", "known", case="test_0")


def clause(number=1, keyword="MUST", level="contract", needs=(), applies=(), untestable=None):
    return Clause(f"TGT-{number:03}", "TGT", keyword, level, "1.0", needs, applies, "Text.", "Why.", untestable, "t.md")


def cases(*statuses):
    return [Case(f"test_x.py::test_{number}", ("TGT-001",), status) for number, status in enumerate(statuses)]


@pytest.mark.parametrize(
    ("statuses", "known", "outcome"),
    [
        ([P], [], Outcome.PASS),
        ([P, P, D], [], Outcome.PASS),
        ([P, F], [], Outcome.FAIL),
        ([S, F], [], Outcome.FAIL),
        ([P, S], [], Outcome.NOT_TESTABLE),
        ([P, N], [], Outcome.NOT_RUN),
        ([D], [], Outcome.NOT_RUN),
        ([], [], Outcome.NOT_RUN),
        ([F, P], [WHOLE], Outcome.STALE),
        ([F, F], [WHOLE], Outcome.XFAIL),
        ([S], [WHOLE], Outcome.XFAIL),
        ([P, P], [WHOLE], Outcome.STALE),
        ([P, D], [WHOLE], Outcome.STALE),
        ([P, N], [WHOLE], Outcome.STALE),
        ([F, N], [WHOLE], Outcome.XFAIL),
        ([N, N], [WHOLE], Outcome.NOT_RUN),
        ([F, P], [FIRST], Outcome.XFAIL),
        ([F, F], [FIRST], Outcome.FAIL),
        ([F, S], [FIRST], Outcome.NOT_TESTABLE),
        ([P, P], [FIRST], Outcome.STALE),
        ([P, F], [FIRST], Outcome.FAIL),
        ([F, P], [FIRST, KnownFailure("TGT-001", "known", case="test_1")], Outcome.STALE),
        ([F, N], [FIRST], Outcome.XFAIL),
        ([], [WHOLE], Outcome.NOT_RUN),
        ([P, U], [], Outcome.PASS),
        ([F, U], [], Outcome.FAIL),
        ([U, U], [], Outcome.NOT_CLAIMED),
        ([U, D], [], Outcome.NOT_RUN),
        ([U, F], [WHOLE], Outcome.XFAIL),
        ([U, P], [WHOLE], Outcome.STALE),
        ([U, P], [FIRST], Outcome.PASS),
        ([F], [KnownFailure("TGT-002", "another")], Outcome.FAIL),
    ],
)
def test_cases_fold_to_one_outcome(statuses, known, outcome):
    (result,) = fold([clause()], cases(*statuses), Conditions(known_failures=tuple(known)))
    assert result.outcome is outcome


def test_clause_counts_its_own_cases():
    others = [Case("test_x.py::test_other", ("TGT-002",), F)]
    (result,) = fold([clause()], cases(P, F, S, N, D, U, U) + others, Conditions())
    assert (result.executed, result.failed, result.unclaimed) == (2, 1, 2)


@pytest.mark.parametrize(
    ("claims", "version", "outcome"),
    [
        ({"pipelines"}, "5.1", Outcome.PASS),
        ({"other"}, "5.1", Outcome.NOT_CLAIMED),
        ({"pipelines"}, "4.9", Outcome.NOT_APPLICABLE),
        (set(), "4.9", Outcome.NOT_APPLICABLE),
    ],
)
def test_conditions_exempt_a_clause(claims, version, outcome):
    conditional = clause(level="extension", needs=("pipelines",), applies=(Applies("transformers", ">=5"),))
    conditions = Conditions(frozenset(claims), versions={"transformers": version})
    assert [result.outcome for result in fold([conditional], cases(P), conditions)] == [outcome]


def result(outcome, **more):
    return ClauseResult(clause(**more), outcome, executed=1)


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize(("keyword", "strict"), [("MUST", False), ("SHOULD", False), ("SHOULD", True)])
def test_outcome_decides_the_verdict(outcome, keyword, strict):
    tolerated = {Outcome.PASS, Outcome.XFAIL, Outcome.NOT_CLAIMED, Outcome.NOT_APPLICABLE}
    if keyword == "SHOULD" and not strict:
        tolerated |= {Outcome.FAIL, Outcome.NOT_TESTABLE, Outcome.NOT_RUN}
    found = verdict([result(Outcome.PASS), result(outcome, number=2, keyword=keyword)], cases(P), strict=strict)
    assert found.conformant is (outcome in tolerated)
    assert found.conformant is not any("TGT-002" in reason for reason in found.reasons)


def test_should_failure_is_a_warning():
    found = verdict([result(Outcome.FAIL, keyword="SHOULD")], cases(F))
    assert (found.conformant, found.warnings) == (True, ("FAIL (SHOULD): TGT-001",))


def test_untestable_clause_is_excused():
    excused = ClauseResult(clause(number=2, untestable="no hardware"), Outcome.NOT_RUN)
    assert verdict([result(Outcome.PASS), excused], cases(P)).levels == ("contract",)


def test_run_without_executed_cases_is_not_conformant():
    found = verdict([result(Outcome.NOT_CLAIMED)], cases(D, N, S))
    assert (found.conformant, found.levels, found.reasons) == (False, (), ("no test was executed",))


def test_problems_are_reasons():
    assert verdict([result(Outcome.PASS)], cases(P), problems=["disk full"]).reasons == ("disk full",)


@pytest.mark.parametrize(
    ("outcomes", "levels"),
    [
        ((Outcome.PASS, Outcome.PASS, Outcome.PASS), ("contract", "extension", "hardening")),
        ((Outcome.PASS, Outcome.FAIL, Outcome.PASS), ("contract",)),
        ((Outcome.PASS, Outcome.NOT_CLAIMED, Outcome.PASS), ("contract",)),
        ((Outcome.PASS, Outcome.NOT_APPLICABLE, Outcome.PASS), ("contract",)),
        ((Outcome.XFAIL, Outcome.PASS, Outcome.PASS), ()),
    ],
)
def test_level_is_reached_with_those_below_it(outcomes, levels):
    stated = zip(("contract", "extension", "hardening"), outcomes, strict=True)
    results = [result(outcome, number=n, level=level) for n, (level, outcome) in enumerate(stated)]
    assert verdict(results, cases(P)).levels == levels
    assert verdict(results, cases(P), partial=True).levels == ()


def test_known_failures_are_part_of_the_verdict():
    found = verdict([result(Outcome.PASS), result(Outcome.XFAIL, number=2)], cases(P, F))
    assert (found.conformant, found.text) == (True, "conformant except for known failures (1)")


def test_what_is_not_claimed_is_part_of_the_verdict():
    found = verdict([result(Outcome.PASS), *(result(Outcome.NOT_CLAIMED, number=n) for n in (2, 3))], cases(P))
    assert (found.conformant, found.levels) == (True, ())
    assert found.text == "conformant; clauses not claimed: 2"
