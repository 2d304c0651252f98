# SPDX-License-Identifier: Apache-2.0
"""The plugin, tried on a small specification in processes of its own."""

from __future__ import annotations

from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest

from spec_tests import plugin
from spec_tests.harness.results import record

ALONE_AND_DISTRIBUTED = pytest.mark.parametrize("workers", ["-n0", "-n2"])


@ALONE_AND_DISTRIBUTED
def test_each_clause_gets_its_outcome(sample, workers):
    sample.implementation(known="KnownFailure(clause='ALP-002', reason='known'),")
    sample.tests(two="assert False", four="pytest.skip('no strace')")
    result = sample.run(workers, "--conformance")
    assert sample.outcomes == {
        "ALP-001": "PASS",
        "ALP-002": "XFAIL",
        "ALP-003": "NOT-CLAIMED",
        "ALP-004": "NOT-TESTABLE",
        "ALP-005": "NOT-APPLICABLE",
    }
    assert sample.report["executed"] == 2
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*NOT-TESTABLE: *no strace*", "*verdict: not conformant*"])


def test_conformant_run_exits_zero_and_says_what_it_was(sample):
    sample.implementation(capabilities=("pipelines",))
    sample.tests()
    result = sample.run("--conformance")
    assert result.ret == 0
    assert sample.report["verdict"]["levels"] == ["contract", "extension", "hardening"]
    result.stdout.fnmatch_lines(
        [
            "implementation: fake 1.2 (a test of the suite), --impl fake.py",
            "specification: 1.1, 5 clauses; examples: derandomised",
            "versions: python *",
            "clauses: 4 PASS, 1 NOT-APPLICABLE; 4 cases executed",
            "verdict: conformant (levels reached: contract, extension, hardening)",
        ]
    )


@pytest.mark.parametrize("kind", ["--conformance", "-q"])
def test_outcomes_are_compared_with_the_recorded_ones(sample, kind):
    sample.tests()
    sample.run("--conformance")
    record(sample.directory / "results", sample.report)
    options = (kind, "--check-results", "--results-dir", "results")
    same = sample.run(*options)
    assert same.ret == 0
    same.stdout.fnmatch_lines(["recorded results: compared with fake/1.2.json"])
    # A SHOULD: the run itself stays conformant.
    sample.implementation(known="KnownFailure(clause='ALP-002', reason='known'),")
    sample.tests(two="assert False")
    other = sample.run(*options)
    assert other.ret == 1
    other.stdout.fnmatch_lines(["ALP-002 is recorded as PASS and is XFAIL (fake/1.2.json)"])


def test_a_part_of_a_run_is_not_compared_with_recorded_results(sample):
    sample.tests()
    result = sample.run("--conformance", "--clause", "ALP-001", "--check-results", "--results-dir", "nowhere")
    assert result.ret == 0
    result.stdout.no_re_match_line("(no|recorded) results")


def test_failing_must_is_reported_with_a_command_that_repeats_it(sample):
    sample.tests(one="assert False")
    result = sample.run("--conformance")
    assert (result.ret, sample.outcomes["ALP-001"]) == (1, "FAIL")
    result.stdout.fnmatch_lines(["python -m spec_tests --impl fake.py --clause ALP-001"])


@pytest.mark.parametrize(("option", "code"), [((), 0), (("--strict-should",), 1)])
def test_failing_should_fails_only_a_strict_run(sample, option, code):
    sample.tests(two="assert False")
    assert sample.run("--conformance", *option).ret == code
    assert sample.outcomes["ALP-002"] == "FAIL"


@ALONE_AND_DISTRIBUTED
def test_unknown_clause_is_a_collection_error(sample, workers):
    sample.tests(extra="@pytest.mark.clause('ALP-044')\ndef test_extra(): pass")
    result = sample.run(workers, "--conformance")
    assert result.ret not in {0, 5}
    result.stdout.fnmatch_lines(["*test_extra: unknown clause 'ALP-044'; nearest: *ALP-004*"])


def test_run_without_cases_is_not_conformant(sample):
    sample.tests()
    result = sample.run("--conformance", "-k", "nothing_of_that_name")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*no test was executed*", "verdict: not conformant*"])


def test_must_clause_without_a_case_is_not_conformant(sample):
    sample.tests()
    assert sample.run("--conformance", "-k", "not four").ret == 1
    assert sample.outcomes["ALP-004"] == "NOT-RUN"


def test_crashed_worker_fails_the_clause(sample):
    sample.tests(one="os._exit(3)")
    assert sample.run("-n1", "--conformance").ret != 0
    assert sample.outcomes["ALP-001"] == "FAIL"


def test_claim_that_no_clause_needs_is_a_usage_error(sample):
    sample.implementation(capabilities=("pipeline",))
    sample.tests()
    result = sample.run("--conformance")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--impl fake.py: claims 'pipeline', which no clause needs; nearest: pipelines*"])


def test_xfail_mark_on_a_test_of_a_clause_fails(sample):
    sample.tests(extra="@pytest.mark.clause('ALP-001')\n@pytest.mark.xfail\ndef test_extra(): assert False")
    assert sample.run("--conformance").ret == 1
    assert sample.outcomes["ALP-001"] == "NOT-TESTABLE"


def test_failure_outside_any_clause_is_not_conformant(sample):
    sample.tests(extra="def test_of_no_clause(): assert False")
    result = sample.run("--conformance")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["against: failed outside any clause: test_sample.py::test_of_no_clause"])


@pytest.mark.parametrize(
    ("option", "reported", "executed"),
    [
        (("--clause", "ALP-004", "--clause", "ALP-001"), {"ALP-001", "ALP-004"}, 2),
        (("--level", "contract"), {"ALP-001", "ALP-002", "ALP-005"}, 2),
    ],
)
def test_selected_run_reports_the_selected_clauses_only(sample, option, reported, executed):
    sample.tests()
    assert sample.run("--conformance", *option).ret == 0
    assert (set(sample.outcomes), sample.report["executed"]) == (reported, executed)


def test_test_of_several_clauses_belongs_to_the_highest_level(sample):
    sample.tests(extra="@pytest.mark.clause('ALP-001', 'ALP-004')\ndef test_extra(): assert False")
    assert sample.run("--conformance", "--level", "contract").ret == 0
    assert sample.run("--conformance").ret == 1
    assert {sample.outcomes["ALP-001"], sample.outcomes["ALP-004"]} == {"FAIL"}


@pytest.mark.parametrize("option", [("--area", "NIL"), ("--area", "ALP,NIL"), ("--clause", "ALP-999")])
def test_selecting_what_does_not_exist_is_a_usage_error(sample, option):
    sample.tests()
    result = sample.run(*option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{option[0]} {option[1].rpartition(',')[2]}: no such*"])


def test_opt_in_tests_run_only_when_marks_are_asked_for(sample):
    sample.tests(extra="@pytest.mark.bench\ndef test_slow(): assert False")
    assert sample.run().ret == 0
    sample.run("-m", "bench").assert_outcomes(failed=1, deselected=5)


@ALONE_AND_DISTRIBUTED
def test_junit_report_names_the_clauses(sample, workers):
    sample.tests()
    sample.run(workers, "--junitxml", "junit.xml")
    found = {
        case.get("name"): [item.get("value") for item in case.iter("property") if item.get("name") == "clause"]
        for case in ET.parse(sample.directory / "junit.xml").iter("testcase")
    }
    assert found == {"test_one": ["ALP-001"], "test_two": ["ALP-002"], "test_four": ["ALP-004"]}


def test_kept_trees_lie_under_the_name_of_the_test(sample):
    sample.tests(
        extra="def test_keeps(tree_dir, fresh_dir):\n"
        "    (tree_dir / 'a').touch(); (fresh_dir() / 'b').touch(); (fresh_dir() / 'c').touch()\n"
        "    assert fresh_dir.last.name == '0002'"
    )
    for _ in range(2):  # the second run finds what the first has left
        sample.run("--keep-trees", "kept", "-k", "keeps").assert_outcomes(passed=1, deselected=5)
    kept = sample.directory / "kept" / "test_sample.py-test_keeps"
    files = sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file())
    assert files == ["0001/b", "0002/c", "a"]


def test_seed_repeats_the_draws(sample):
    drawn = (
        "from hypothesis import given, strategies as st\n"
        "@given(st.integers())\n"
        "def test_draws(value):\n"
        "    with open('drawn.txt', 'a') as file: file.write(f'{value} ')"
    )
    sample.tests(extra=drawn)
    seen = []
    for seed in ("5", "5", "6"):
        (sample.directory / "drawn.txt").write_text("", encoding="utf-8")
        sample.run("-p", "_hypothesis_pytestplugin", "--seed", seed, "-k", "draws").assert_outcomes(
            passed=1, deselected=5
        )
        seen.append((sample.directory / "drawn.txt").read_text(encoding="utf-8"))
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"numprocesses": None}, (3, "worksteal")),
        ({"numprocesses": 0}, (0, "no")),
        ({"numprocesses": None, "usepdb": True}, (None, "no")),
        ({"numprocesses": None, "worker": True}, (None, "no")),  # a worker that starts workers is a fork bomb
        ({}, (None, "no")),  # no xdist
    ],
)
def test_default_number_of_workers(monkeypatch, given, expected):
    monkeypatch.setattr(plugin, "_cores", lambda: 2)
    option = SimpleNamespace(**{"usepdb": False, "dist": "no", **given})
    config = SimpleNamespace(option=option, getini={"spec_workers": "4"}.get)
    if given.get("worker"):
        config.workerinput = {}
    next(plugin.pytest_cmdline_main(config))
    assert (getattr(option, "numprocesses", None), option.dist) == expected


def test_workers_share_the_cores_and_start_with_what_is_long(sample, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sample.tests(
        one="assert os.environ['OMP_NUM_THREADS'] == '1'",
        last="@pytest.mark.long\n@pytest.mark.clause('ALP-001')\ndef test_last():\n    pass",
    )
    assert sample.run("-n1").ret == 0
    said = sample.run("-n0", "-v", "--deselect=test_sample.py::test_one").stdout.lines
    assert "test_last" in next(line for line in said if "PASSED" in line)


def test_interrupt_where_python_knows_no_line_is_shown():
    def interrupted():
        raise KeyboardInterrupt

    interrupted.__code__ = interrupted.__code__.replace(co_linetable=b"")
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    with pytest.raises(TypeError, match="NoneType"):  # pytest by itself
        caught.getrepr()
    plugin.pytest_keyboard_interrupt(caught)
    assert "KeyboardInterrupt" in str(caught.getrepr())
