# SPDX-License-Identifier: Apache-2.0
"""Which clauses and tests a run is about, and the ledger that counts them."""

from __future__ import annotations

import pytest

from spec_tests.harness.clauses import Applies, Clause
from spec_tests.harness.counting import Ledger
from spec_tests.harness.outcomes import Case, Conditions, Status
from spec_tests.harness.selection import Selection, listed, nearest


def clause(clause_id, level="contract", needs=()):
    return Clause(clause_id, clause_id[:3], "MUST", level, "1.0", needs, (), "Text.", "Why.", None, "t.md")


OLD = Clause("OLD-001", "OLD", "MUST", "contract", "1.0", (), (Applies("torch", "<1"),), "Text.", "Why.", None, "t.md")
LOW, HIGH, NEEDY = clause("TGT-001"), clause("EXP-001", "hardening"), clause("RUN-001", "extension", ("pipelines",))


@pytest.mark.parametrize(
    ("selection", "included"),
    [
        (Selection(), [LOW, HIGH, NEEDY]),
        (Selection(areas=("TGT", "RUN")), [LOW, NEEDY]),
        (Selection(clauses=("EXP-001",)), [HIGH]),
        (Selection(level="extension"), [LOW, NEEDY]),
        (Selection(areas=("EXP",), level="contract"), []),
    ],
)
def test_selection_includes_clauses(selection, included):
    assert [item for item in (LOW, HIGH, NEEDY) if selection.includes(item)] == included


def test_areas_are_listed_in_one_value_or_in_several():
    assert listed(["TGT,EXP", "RUN"]) == listed(["TGT", "EXP,RUN"]) == ("TGT", "EXP", "RUN")
    assert listed([]) == ()


@pytest.mark.parametrize(
    ("selection", "clauses", "needs", "claims", "status"),
    [
        (Selection(), [LOW], (), (), Status.NOT_RUN),
        (Selection(), [], (), (), Status.NOT_RUN),
        (Selection(level="hardening"), [], (), (), Status.DESELECTED),
        (Selection(areas=("TGT",)), [], (), (), Status.DESELECTED),
        (Selection(areas=("TGT",)), [LOW, HIGH], (), (), Status.NOT_RUN),
        (Selection(areas=("TGT",)), [HIGH], (), (), Status.DESELECTED),
        (Selection(level="contract"), [LOW, HIGH], (), (), Status.DESELECTED),
        (Selection(), [LOW, NEEDY], (), (), Status.UNCLAIMED),
        (Selection(), [LOW, NEEDY], (), ("pipelines",), Status.NOT_RUN),
        (Selection(), [LOW], ("encoder",), (), Status.UNCLAIMED),
        (Selection(), [LOW], ("encoder",), ("encoder",), Status.NOT_RUN),
        (Selection(areas=("EXP",)), [LOW], ("encoder",), (), Status.DESELECTED),
        (Selection(), [OLD, NEEDY], (), (), Status.DESELECTED),
    ],
)
def test_selection_wants_tests(selection, clauses, needs, claims, status):
    assert selection.wants(clauses, Conditions(frozenset(claims)), needs) is status


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [("TGT-010", "nearest: TGT-001"), ("QQQQ", "none is like it")],
)
def test_nearest_ids_are_suggested(wrong, hint):
    assert nearest(wrong, ["TGT-001", "EXP-999"]) == hint


def test_ledger_joins_plan_and_reports_in_any_order():
    ledger = Ledger()
    ledger.report("t.py::test_failed_then_torn_down", Status.FAILED)
    ledger.report("t.py::test_failed_then_torn_down", Status.PASSED)
    ledger.report("t.py::test_passed", Status.PASSED)
    ledger.report("t.py::test_of_no_clause", Status.FAILED)
    plan = [
        ("t.py::test_passed", ("TGT-001",), Status.NOT_RUN.value),
        ("t.py::test_left_out", ("TGT-001",), Status.DESELECTED.value),
        ("t.py::test_failed_then_torn_down", ("TGT-002",), Status.NOT_RUN.value),
        ("t.py::test_lost", ("TGT-001",), Status.NOT_RUN.value),
        ("t.py::test_of_no_clause", (), Status.NOT_RUN.value),
    ]
    for _ in range(2):  # two workers collect the same tests
        ledger.plan(plan)
    assert ledger.cases() == [
        Case("t.py::test_failed_then_torn_down", ("TGT-002",), Status.FAILED),
        Case("t.py::test_left_out", ("TGT-001",), Status.DESELECTED),
        Case("t.py::test_lost", ("TGT-001",), Status.NOT_RUN),
        Case("t.py::test_passed", ("TGT-001",), Status.PASSED),
    ]
    assert ledger.failures_outside_clauses() == ["t.py::test_of_no_clause"]
