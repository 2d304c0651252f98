# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests``, from directories that are none of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from spec_tests import __main__ as program
from spec_tests.harness.clauses import load_clauses
from spec_tests.harness.paths import fixtures_dir
from spec_tests.meta.forks import forked, program_in_a_fork


def test_conformance_run_ignores_the_callers_settings(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n", encoding="utf-8")
    (tmp_path / "conftest.py").write_text("raise SystemExit('not yours')\n", encoding="utf-8")
    tests = "areas/test_hooks.py::test_hook_takes_keywords_and_returns_none"
    code, said = program_in_a_fork(tmp_path, "--clause", "HOOK-001", "--jobs", "0", tests, PYTEST_ADDOPTS="-k nothing")
    assert code == 0, said
    assert "verdict: conformant for the selected clauses" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conftest.py", "pytest.ini"]


def test_unknown_clause_is_a_usage_error(tmp_path):
    code, said = program_in_a_fork(tmp_path, "--clause", "HOOK-999", "--jobs", "0")
    assert (code, list(tmp_path.iterdir())) == (pytest.ExitCode.USAGE_ERROR, [])
    assert "HOOK-999: no such clause" in said


def test_clauses_are_listed(capsys):
    assert program.main(["clauses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(load_clauses())
    assert [line.split()[0] for line in lines if line.endswith("[needs _config_exists]")] == ["CFG-010"]


def test_commands_are_dispatched_with_their_arguments(monkeypatch):
    seen = []
    module = type(sys)("stub")
    module.main = lambda argv: seen.append(argv) or 3
    monkeypatch.setitem(sys.modules, "spec_tests.demo", module)
    assert (program.main(["demo", "--ranks", "4"]), seen) == (3, [["--ranks", "4"]])


def test_installation_without_tests_is_no_success(monkeypatch, capsys):
    monkeypatch.setattr(program, "area_tests", list)
    assert program.main([]) == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "incomplete" in capsys.readouterr().err


def test_fixtures_are_found_inside_the_package_before_beside_it(tmp_path, monkeypatch):
    package = tmp_path / "spec_tests"
    package.mkdir()
    monkeypatch.setattr("spec_tests.harness.paths.package_dir", lambda: package)
    with pytest.raises(FileNotFoundError, match="incomplete"):
        fixtures_dir()
    (tmp_path / "fixtures").mkdir()
    assert fixtures_dir() == tmp_path / "fixtures"
    (package / "fixtures").mkdir()
    assert fixtures_dir() == package / "fixtures"


def test_unknown_command_is_named_at_once(capsys):
    assert program.main(["bnech"]) == pytest.ExitCode.USAGE_ERROR
    assert "bench" in capsys.readouterr().err


def test_report_into_a_directory_that_is_not_there_is_refused_before_the_run(tmp_path):
    code, said = program_in_a_fork(tmp_path, "--report-json", str(tmp_path / "nowhere" / "report.json"), "--jobs", "0")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "--report-json" in said
    assert "verdict" not in said


def test_one_case_runs_alone(tmp_path):
    case = "areas/test_hooks.py::test_hook_takes_keywords_and_returns_none[pre_save]"
    code, said = program_in_a_fork(tmp_path, "--clause", "HOOK-001", case, "--jobs", "0")
    assert code == 0, said
    assert "1 cases executed" in said
    assert said.startswith("spec_tests: ")


@pytest.mark.long
@pytest.mark.parametrize(("how", "jobs"), [(signal.SIGTERM, "1"), (signal.SIGINT, "0")], ids=["scheduler", "ctrl-c"])
def test_run_that_is_ended_says_what_ran(sample, how, jobs):
    # Behind the first, one that takes seconds: the interrupt comes before the end on a busy machine, too.
    sample.tests(two="import time; time.sleep(4)")
    report, (reading, writing) = sample.directory / "report.json", os.pipe()
    chosen = [f"{sample.directory}/test_sample.py::test_{name}" for name in ("one", "two")]
    words = [*chosen, "--spec-dir", "spec", "--impl", "fake.py", "-v", "--report-json", str(report), "--jobs", jobs]
    pid = forked(lambda: program.main(words), Path(f"/dev/fd/{writing}"))
    os.close(writing)
    with os.fdopen(reading) as lines:
        said = interrupt_at_first(lines, lambda: os.kill(pid, how))
    check_interrupted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said, report)


def interrupt_at_first(lines, interrupt):
    said = []
    for line in lines:
        said.append(line)
        if "PASSED" in line and sum("PASSED" in one for one in said) == 1:
            interrupt()
    return "".join(said)


def check_interrupted(code, said, report):
    content = json.loads(report.read_text())
    assert code != 0
    assert not content["complete"]
    assert list(content["cases"].values()).count("passed") >= 1
    assert "cases executed" in said
    assert " 0 cases executed" not in said
