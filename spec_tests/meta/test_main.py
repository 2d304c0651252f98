# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests``, from directories that are none of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from spec_tests import __main__ as program
from spec_tests.harness.clauses import load_clauses
from spec_tests.harness.paths import fixtures_dir, package_dir


def run(directory, *arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "HYPOTHESIS"))}
    settings = {**inherited, "PYTHONPATH": str(package_dir().parent), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-m", "spec_tests", *arguments]
    return subprocess.run(command, cwd=directory, env=settings, capture_output=True, text=True, check=False)


def test_conformance_run_ignores_the_callers_settings(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n", encoding="utf-8")
    (tmp_path / "conftest.py").write_text("raise SystemExit('not yours')\n", encoding="utf-8")
    done = run(tmp_path, "--clause", "HOOK-001", "--jobs", "1", PYTEST_ADDOPTS="-k nothing")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: conformant for the selected clauses" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conftest.py", "pytest.ini"]


def test_unknown_clause_is_a_usage_error(tmp_path):
    done = run(tmp_path, "--clause", "HOOK-999", "--jobs", "0")
    assert (done.returncode, list(tmp_path.iterdir())) == (pytest.ExitCode.USAGE_ERROR, [])
    assert "HOOK-999: no such clause" in done.stderr


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
    done = run(tmp_path, "--report-json", str(tmp_path / "nowhere" / "report.json"), "--jobs", "0")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--report-json" in done.stderr
    assert "verdict" not in done.stdout


def test_one_case_runs_alone(tmp_path):
    case = "areas/test_hooks.py::test_hook_takes_keywords_and_returns_none[pre_save]"
    done = run(tmp_path, "--clause", "HOOK-001", case, "--jobs", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 cases executed" in done.stdout
    assert done.stdout.startswith("spec_tests: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_says_what_ran(tmp_path, number):
    # What a shell has put into the background ignores Ctrl-C, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        check_interrupted(tmp_path, number)
    finally:
        signal.signal(signal.SIGINT, before)


def check_interrupted(tmp_path, number):
    report = tmp_path / "report.json"
    case = "areas/test_adapter_config.py::test_targets_are_the_modules_with_tensors"
    words = [sys.executable, "-u", "-m", "spec_tests", case, "--jobs", "1", "-v", "--report-json"]
    with subprocess.Popen([*words, str(report)], stdout=subprocess.PIPE, text=True) as run:
        said = []
        for line in run.stdout:
            said.append(line)
            if "PASSED" in line and sum("PASSED" in one for one in said) == 1:
                run.send_signal(number)
    text = "".join(said)
    content = json.loads(report.read_text())
    assert run.returncode != 0
    assert not content["complete"]
    assert list(content["cases"].values()).count("passed") >= 1
    assert "cases executed" in text
    assert " 0 cases executed" not in text
