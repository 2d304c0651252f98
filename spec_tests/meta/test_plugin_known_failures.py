# SPDX-License-Identifier: Apache-2.0
"""What an implementation is known to fail, in whole runs of the plugin."""

from __future__ import annotations

import pytest

KNOWN = "KnownFailure(clause='ALP-001', reason='it was ever so'),"


def test_known_failure_that_passes_is_stale(sample):
    sample.implementation(known=KNOWN)
    sample.tests()
    assert sample.run().ret == 1
    assert sample.outcomes["ALP-001"] == "STALE"
    result = sample.run("--conformance")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["against: known failure that passes: ALP-001: remove it, *; test_one passes"])


def test_known_failure_of_a_clause_hides_no_test_that_passes(sample):
    sample.implementation(known=KNOWN)
    sample.tests(one="assert False", extra="@pytest.mark.clause('ALP-001')\ndef test_extra(): pass")
    result = sample.run("--conformance")
    assert (result.ret, sample.outcomes["ALP-001"]) == (1, "STALE")
    result.stdout.fnmatch_lines(["against: known failure that passes: ALP-001: *; test_extra passes"])
    sample.implementation(known="KnownFailure(clause='ALP-001', case='test_one', reason='known'),")
    result = sample.run("--conformance")
    assert (result.ret, sample.outcomes["ALP-001"]) == (0, "XFAIL")


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_known_failure_is_expected(sample, workers):
    sample.implementation(known=KNOWN)
    sample.tests(one="assert False")
    result = sample.run(workers, "--conformance")
    assert (result.ret, sample.outcomes["ALP-001"]) == (0, "XFAIL")
    result.assert_outcomes(passed=2, xfailed=1, deselected=0 if workers == "-n2" else 2)
    result.stdout.fnmatch_lines(["verdict: conformant except for known failures (1); clauses not claimed: 1"])


def test_known_failure_that_matches_no_test_is_named(sample):
    sample.implementation(known="KnownFailure(clause='ALP-001', case='test_two', reason='typo'),")
    sample.tests()
    result = sample.run("--conformance")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["against: known failure that matches no test: ALP-001 test_two"])


def test_known_failures_of_other_tests_are_no_matter_where_one_is_asked_for(sample):
    sample.implementation(known=KNOWN)
    sample.tests(one="assert False")
    result = sample.run("--conformance", "--clause", "ALP-002", "test_sample.py::test_two")
    result.stdout.no_fnmatch_line("*matches no test*")
    assert result.ret == 0


def test_known_failure_of_what_is_not_claimed_is_named(sample):
    sample.implementation(known="KnownFailure(clause='ALP-003', reason='no pipelines'),")
    sample.tests()
    result = sample.run("--conformance")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["against: known failure of what is not claimed: ALP-003"])
    assert sample.run("--conformance", "--clause", "ALP-001").ret == 0


def test_known_failure_of_another_version_is_no_excuse(sample):
    sample.implementation(known="KnownFailure(clause='ALP-001', reason='fixed', versions='<1.2'),")
    sample.tests(one="assert False")
    assert sample.run("--conformance").ret == 1
    assert sample.outcomes["ALP-001"] == "FAIL"


def test_known_failures_that_contradict_themselves_stop_the_run(sample):
    sample.implementation(known=KNOWN + "KnownFailure(clause='ALP-001', case='test_one', reason='same'),")
    sample.tests()
    result = sample.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*ALP-001: listed as a whole and case by case*"])
