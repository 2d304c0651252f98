# SPDX-License-Identifier: Apache-2.0
"""Lists of known failures: reading, matching, and what is refused."""

from __future__ import annotations

import pytest

from spec_tests.harness.known_failures import (
    KnownFailure,
    KnownFailureError,
    check_consistent,
    passing,
    read_known_failures,
    unmatched,
)

GOOD = """\
[[known_failure]]
clause = "TGT-004"
reason = "the prefix is removed at the front only"
cases = ["test_wrappers[compile]", "test_others"]
issue = "org/project#12"
versions = ">=0.5,<0.7"

[[known_failure]]
clause = "TGT-005"
reason = "another"
"""


def read(tmp_path, text):
    path = tmp_path / "known.toml"
    path.write_text(text, encoding="utf-8")
    return read_known_failures(path)


def test_entries_are_read(tmp_path):
    told = {"reason": "the prefix is removed at the front only", "issue": "org/project#12", "versions": ">=0.5,<0.7"}
    assert read(tmp_path, GOOD) == (
        KnownFailure("TGT-004", case="test_wrappers[compile]", **told),
        KnownFailure("TGT-004", case="test_others", **told),
        KnownFailure("TGT-005", "another"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[known_failures]]\n", "unknown table 'known_failures'"),
        ("[[known_failure]]\nclause = 'TGT-004'\n", "without 'reason'"),
        ("[[known_failure]]\nreason = 'x'\n", "without 'clause'"),
        ("[[known_failure]]\nclause = 'TGT-004'\nreason = ''\n", "without 'reason'"),
        ("[[known_failure]]\nclause = 'TGT-004'\nreason = 'x'\nif = 'y'\n", "has the keys cases, clause"),
        ("[[known_failure]]\nclause = 'TGT-004'\nreason = 'x'\nissue = 12\n", "'issue' is no text"),
        ("[[known_failure]]\nclause = 'TGT-004'\nreason = 'x'\nversions = 'old'\n", "'old' is no version specifier"),
        ("[[known_failure]]\nclause = 'TGT-004'\nreason = 'x'\ncase = 'test_a'\n", "has the keys cases, clause"),
        ("[[known_failure]]\nclause = 'TGT-004'\nreason = 'x'\ncases = 'test_a'\n", "'cases' must be a list of names"),
        ("[[known_failure]]\nclause = 'TGT-004'\nreason = 'x'\ncases = []\n", "'cases' must be a list of names"),
        ("[[known_failure]]\nclause = 'TGT-004'\nreason = 'x'\ncases = ['']\n", "'cases' must be a list of names"),
        ("known_failure = ['TGT-004']\n", "has the keys"),
        ("[[known_failure]\n", "known.toml: "),
        (GOOD + "[[known_failure]]\nclause = 'TGT-004'\nreason = 'x'\n", "TGT-004: listed as a whole and case by case"),
        (GOOD + "[[known_failure]]\nclause = 'TGT-005'\nreason = 'x'\n", "TGT-005: listed twice"),
    ],
)
def test_bad_lists_are_refused(tmp_path, text, message):
    with pytest.raises(KnownFailureError) as error:
        read(tmp_path, text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("case", "matches"),
    [
        (None, True),
        ("test_wrappers", True),
        ("test_wrappers[a::b]", True),
        ("test_wrappers[a", False),
        ("wrappers", False),
        ("test_wrapper", False),
        ("test_targets.py::test_wrappers", False),
    ],
)
def test_case_is_the_name_of_a_test_with_or_without_its_parameters(case, matches):
    entry = KnownFailure("TGT-004", "x", case=case)
    file = "spec_tests/areas/test_targets.py"
    assert entry.matches(f"{file}::Group::test_wrappers[a::b]", ("TGT-001", "TGT-004")) is matches
    assert not entry.matches(f"{file}::test_wrappers[a::b]", ("TGT-001",))


@pytest.mark.parametrize(
    ("versions", "version", "holds"),
    [
        (None, "unknown", True),
        (">=0.5,<0.7", "0.6.1", True),
        (">=0.5,<0.7", "0.7.0", False),
        (">=0.7", "0.8.0rc1", True),
    ],
)
def test_entry_holds_for_its_versions(versions, version, holds):
    assert KnownFailure("TGT-004", "x", versions=versions).holds_for(version) is holds


def test_version_range_needs_a_version():
    with pytest.raises(KnownFailureError, match="unknown"):
        KnownFailure("TGT-004", "x", versions=">=1").holds_for("unknown")


def test_entries_about_no_test_are_found():
    used, unused = KnownFailure("TGT-004", "x", case="test_a"), KnownFailure("TGT-004", "x", case="test_b")
    assert unmatched([used, unused], [("t.py::test_a", ("TGT-004",)), ("t.py::test_b", ("TGT-001",))]) == [unused]


def test_one_clause_may_have_an_entry_for_each_version_range():
    check_consistent([KnownFailure("TGT-004", "x", versions="<1"), KnownFailure("TGT-004", "y", versions=">=1")])


def test_one_version_may_fail_a_case_of_what_another_fails_as_a_whole(tmp_path):
    whole = "[[known_failure]]\nclause = 'TGT-004'\nreason = 'x'\nversions = '<0.5'\n"
    assert len(read(tmp_path, GOOD + whole)) == 4


def test_same_case_twice_is_refused(tmp_path):
    with pytest.raises(KnownFailureError, match="TGT-004 test_a: listed twice"):
        read(tmp_path, "[[known_failure]]\nclause = 'TGT-004'\nreason = 'x'\ncases = ['test_a', 'test_a']\n")


def test_a_test_that_passes_is_named():
    whole, one = KnownFailure("TGT-004", "x"), KnownFailure("TGT-005", "x", case="test_b")
    passed = [("t.py::test_a[1]", ("TGT-004",)), ("t.py::test_b", ("TGT-004", "TGT-005")), ("t.py::test_c", ())]
    assert passing([whole, one], passed) == [
        "known failure that passes: TGT-004: remove it, or name the cases that fail; test_a[1] passes, and 1 more",
        "known failure that passes: TGT-005 test_b: remove it, or name the cases that fail; test_b passes",
    ]
    assert passing([one], passed[:1]) == []
