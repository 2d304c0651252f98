# SPDX-License-Identifier: Apache-2.0
"""The table, the closing lines and the JSON report."""

from __future__ import annotations

import json

import pytest

from spec_tests.harness.clauses import Clause
from spec_tests.harness.outcomes import Case, ClauseResult, Outcome, Status, verdict
from spec_tests.harness.report import Run, as_dict, as_json, shortened, summary, table


def result(clause_id, outcome, executed=1, failed=0, keyword="MUST", unclaimed=0):
    clause = Clause(clause_id, clause_id[:3], keyword, "contract", "1.0", (), (), "One thing.", "Why.", None, "t.md")
    return ClauseResult(clause, outcome, executed, failed, unclaimed)


RESULTS = [result("TGT-002", Outcome.FAIL, executed=12, failed=3), result("ADP-001", Outcome.PASS)]
VERDICT = verdict(RESULTS, [Case("t.py::test_a", ("TGT-002",), Status.FAILED)])
RUN = Run("some/binding.py:FAKE", "fake", "1.2", "a test", "1.0", 7, {"torch": "2.13.0", "peft": None})


def test_table_has_a_line_a_clause():
    assert table(RESULTS).splitlines() == [
        "area  clause   keyword  level     outcome  cases          text",
        "TGT   TGT-002  MUST     contract  FAIL     12 (3 failed)  One thing.",
        "ADP   ADP-001  MUST     contract  PASS     1              One thing.",
    ]


@pytest.mark.parametrize(
    ("counts", "cell"),
    [
        ({"executed": 3, "unclaimed": 2}, "3 (2 not claimed)"),
        ({"executed": 3, "failed": 1, "unclaimed": 2}, "3 (1 failed, 2 not claimed)"),
        ({"executed": 0, "unclaimed": 2}, "0"),
    ],
)
def test_table_says_what_was_left_out_of_a_clause(counts, cell):
    assert f"  {cell}  " in table([result("ADP-001", Outcome.PASS, **counts)]).splitlines()[1]


@pytest.mark.parametrize(
    ("text", "short"),
    [("one two", "one two"), ("one two three", "one two..."), ("0123456789abc", "0123456...")],
)
def test_text_is_cut_at_a_word(text, short):
    assert shortened(text, 10) == short


def test_summary_counts_and_says_the_verdict():
    assert summary(RESULTS, VERDICT).splitlines() == [
        "clauses: 1 PASS, 1 FAIL; 1 cases executed",
        "against: FAIL: TGT-002",
        "verdict: not conformant",
    ]


MUST = {"keyword": "MUST", "level": "contract", "unclaimed": 0}


def test_json_report_has_everything_in_order():
    assert json.loads(as_json(as_dict(RUN, RESULTS, VERDICT))) == {
        "format": 1,
        "implementation": {"name": "fake", "version": "1.2", "origin": "a test"},
        "spec_version": "1.0",
        "packages": {"peft": None, "torch": "2.13.0"},
        "seed": 7,
        "clauses": {
            "ADP-001": {
                "keyword": "MUST",
                "level": "contract",
                "outcome": "PASS",
                "executed": 1,
                "failed": 0,
                "unclaimed": 0,
            },
            "TGT-002": {
                "keyword": "MUST",
                "level": "contract",
                "outcome": "FAIL",
                "executed": 12,
                "failed": 3,
                "unclaimed": 0,
            },
        },
        "cases": {},
        "complete": True,
        "executed": 1,
        "verdict": {
            "conformant": False,
            "text": "not conformant",
            "levels": [],
            "reasons": ["FAIL: TGT-002"],
            "warnings": [],
        },
    }


def test_json_report_does_not_depend_on_the_order_of_results():
    assert as_json(as_dict(RUN, RESULTS, VERDICT)) == as_json(as_dict(RUN, RESULTS[::-1], VERDICT))
