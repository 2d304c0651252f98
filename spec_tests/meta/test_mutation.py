# SPDX-License-Identifier: Apache-2.0
"""The runner of small edits: which tests reach a function, whether an edit is put in, and whether it is noticed."""

from __future__ import annotations

import json
import linecache
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import addons
from spec_tests.meta.forks import in_a_fork
from spec_tests.mutation import command, hits, judge, killers
from spec_tests.mutation.edits import Edit, _statement, _without_casts, lines_of
from spec_tests.mutation.equivalent import FILE, entries, equivalent
from spec_tests.mutation.report import Killed, Report

FOLDER = Path(addons.__file__).parent
TESTS = """\
import os
import threading
import pytest
from addons.files import write_text
from addons.plain_json import json_text

def test_ends_with_a_line():
    assert json_text({}).endswith("\\n")

@pytest.mark.parametrize("value", [1, 2])
def test_values(value):
    assert json_text({"a": value}) == '{\\n  "a": %d\\n}\\n' % value

def test_fork_and_thread(tmp_path):
    thread = threading.Thread(target=json_text, args=({},))
    thread.start()
    thread.join()
    if (pid := os.fork()) == 0:
        try:
            write_text(tmp_path / "one.json", "{}")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """Run pytest on TESTS in a fork with one of the plugins; returns the exit code."""
    (tmp_path / "test_sample.py").write_text(TESTS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def run(plugin):
        options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", plugin.__name__]
        return in_a_fork(lambda: int(pytest.main([*options, "--rootdir", ".", "test_sample.py"])), tmp_path / "output")

    return run


def edit(before, after, function="json_text"):
    source = (FOLDER / "plain_json.py").read_text(encoding="utf-8")
    assert source.count(before) == 1
    return Edit("plain_json.py", function, before, after, source.replace(before, after))


LINE = 'return _text(content, "\\n") + "\\n"'


def judged(sample, directory, monkeypatch, *edits_and_tests, first=()):
    plan = directory / "plan.json"
    edits = [
        (at, asdict(one), [f"test_sample.py::{name}" for name in tests], [f"test_sample.py::{name}" for name in first])
        for at, (one, *tests) in edits_and_tests
    ]
    plan.write_text(json.dumps({"edits": edits, "seconds": 20}), encoding="utf-8")
    monkeypatch.setenv(judge.PLAN, str(plan))
    assert sample(judge) == 0, (directory / "output").read_text()
    return {result.number: result for result in judge.read(plan.with_suffix(".results"))}


def test_edits_are_judged_by_the_tests_that_reach_them(sample, tmp_path, monkeypatch):
    one, other = "test_values[1]", "test_ends_with_a_line"
    same = edit(LINE, 'return "".join([_text(content, "\\n"), "\\n"])')
    cases = (
        (judge.KILLED, edit(LINE, 'return _text(content, "\\n")'), one, other),
        (judge.SURVIVED, same, other),
        (judge.UNTESTED, same),
        (judge.KILLED, edit(LINE, "import os; os._exit(3)"), one),
        (judge.NOT_SWAPPED, edit(LINE, LINE + "  # the same", function="no_such_function"), one),
        (judge.NOT_SWAPPED, edit(LINE, "return ("), one),
    )
    results = judged(sample, tmp_path, monkeypatch, *((at, case[1:]) for at, case in enumerate(cases)))
    assert [results[at].outcome for at in range(len(cases))] == [case[0] for case in cases]
    assert (results[0].by, results[0].ran) == (f"test_sample.py::{one}", 1)


def test_functions_are_seen_in_forks_and_threads(sample, tmp_path, monkeypatch):
    directory = tmp_path / "hits"
    directory.mkdir()
    monkeypatch.setenv(hits.DIRECTORY, str(directory))
    assert sample(hits) == 0, (tmp_path / "output").read_text()
    found = hits.read(directory)

    def reaching(file, function, line):
        first, last = lines_of(FOLDER / file, function)
        lines = [at for at in range(first, last + 1) if line in linecache.getline(str(FOLDER / file), at)]
        return {test.partition("::")[2] for at in lines for _, test in found.get(f"{file} {at}", ())}

    assert reaching("files.py", "write_text", "") == {"test_fork_and_thread"}
    tests = {"test_ends_with_a_line", "test_values[1]", "test_values[2]", "test_fork_and_thread"}
    assert reaching("plain_json.py", "json_text", LINE) == tests
    assert reaching("plain_json.py", "_text", "set(map(type, value))") == set()


def test_few_tests_that_run_all_lines_of_a_file_come_first():
    slow, found = "slow", {"other.py 1": [(0.1, "none")]}
    for test, seconds, lines in (("all", 0.5, "1 2 3 4"), ("one", 0.1, "1 2"), ("two", 0.1, "1 2"), (slow, 9.0, "5")):
        for line in lines.split():
            found.setdefault(f"file.py {line}", []).append((seconds, test))
    assert hits.covering(found, "file.py") == ["one", "all", slow, "two"]
    # Of those left, one that runs what no other has run elsewhere.
    for test in ("left", "other"):
        found["file.py 1"].append((0.1, test))
    found["other.py 1"].append((0.1, "other"))
    assert hits.covering(found, "file.py") == ["one", "all", slow, "other", "two", "left"]


def test_tests_that_have_not_changed_are_not_traced_again(sample, tmp_path, monkeypatch):
    directory = tmp_path / "hits"
    directory.mkdir()
    monkeypatch.setenv(hits.DIRECTORY, str(directory))
    assert sample(hits) == pytest.ExitCode.OK
    assert sample(hits) == pytest.ExitCode.NO_TESTS_COLLECTED
    for path in directory.iterdir():
        os.utime(path, (0, 0))
    assert sample(hits) == pytest.ExitCode.OK


SOURCE = """\
def function(one):
    if (one and
            one > 1):
        return [
            inner + 1 for inner in one
        ]
    return None
"""


def test_edit_knows_the_lines_of_its_statement():
    assert [_statement(SOURCE, line) for line in (2, 3, 4, 5, 7)] == [(2, 3), (2, 3), (4, 6), (4, 6), (7, 7)]


def test_edit_of_a_type_alone_is_none():
    same = [
        _without_casts(f"return cast({kind}, {value})") for kind, value in (("A", "f(cast(B, x))"), ("None", "f(x)"))
    ]
    assert same == [_without_casts("return f(x)")] * 2
    assert _without_casts("cast(A, x)") != _without_casts("cast(A, y)") != _without_casts("cast(A)")


def test_listed_edits_are_of_lines_that_are_there_and_have_a_reason():
    for one in entries():
        source = (FOLDER / one["file"]).read_text(encoding="utf-8")
        flat = " ".join(line.strip() for line in source.splitlines())
        assert one["before"] in flat, one
    assert len(equivalent()) == len(entries())


def test_entry_without_a_reason_is_refused(monkeypatch, tmp_path):
    (tmp_path / FILE.name).write_text('[[edit]]\nfile = "a.py"\nfunction = "f"\nbefore = "1"\nafter = "2"\n')
    monkeypatch.setattr("spec_tests.mutation.equivalent.FILE", tmp_path / FILE.name)
    with pytest.raises(ValueError, match="reason"):
        entries()


def test_tests_that_speak_of_what_is_edited_are_asked_first(sample, tmp_path, monkeypatch):
    """The first has one word of the line, the second none; the last has one and notices the edit."""
    changed = edit(
        'items = (f"{json.dumps(key)}: {_text(value[key], inner)}"',
        'items = (f"{json.dumps(key)}; {_text(value[key], inner)}"',
        "_text",
    )
    results = judged(
        sample, tmp_path, monkeypatch, (0, (changed, "test_fork_and_thread", "test_ends_with_a_line", "test_values[1]"))
    )
    assert (results[0].outcome, results[0].by, results[0].ran) == (judge.KILLED, "test_sample.py::test_values[1]", 2)


def test_one_that_noticed_the_edit_earlier_is_asked_first(sample, tmp_path, monkeypatch):
    changed = edit(LINE, 'return _text(content, "\\n")')
    tests = (0, (changed, "test_ends_with_a_line", "test_values[1]"))
    for first in ("test_ends_with_a_line", "test_values[1]", "test_values[2]"):
        results = judged(sample, tmp_path, monkeypatch, tests, first=(first,))
        assert (results[0].by, results[0].ran) == (f"test_sample.py::{first}", 1)
        (tmp_path / "plan.results").unlink()


def test_name_of_an_edit_stays_while_its_statement_does():
    one, other = (edit(LINE, after) for after in ("return 1", "return 2"))
    moved = replace(one, source="# more\n" + one.source, lines=(9, 9))
    assert killers.key(one) == killers.key(moved) != killers.key(other)


def test_report_keeps_what_was_noticed_and_prints_what_lives(tmp_path, capsys):
    noticed, alive, listed = (edit(LINE, after) for after in ("return 1", "return 2", "return 3"))
    chosen, known = [noticed, alive, listed], {(listed.file, listed.function, listed.before, listed.after)}

    def run(*outcomes, listed=False):
        report = Report(chosen, known, Killed(tmp_path / "killed"))
        asked = [at for at, one in enumerate(chosen) if report.asks(one, listed=listed)]
        for at, outcome in zip(asked, outcomes, strict=False):
            report.add(judge.Result(at, outcome, "a test", 1, 0.1))
        return asked, report.end(len(asked)), capsys.readouterr().out

    asked, code, said = run(judge.KILLED, judge.SURVIVED)
    assert (asked, code, said.count("`return")) == ([0, 1], 1, 2)
    assert f"{judge.SURVIVED} (1 tests): {alive}" in said
    assert Killed(tmp_path / "killed").by(noticed) == "a test"
    assert run(judge.KILLED)[:2] == ([1], 0)
    # An edit that is listed and that a test notices is none that nobody can see.
    asked, code, said = run(judge.KILLED, listed=True)
    assert (asked, code) == ([2], 1)
    assert "equivalent, and noticed by a test" in said
    (tmp_path / "killed").unlink()
    _, code, said = run(judge.KILLED)
    assert (code, "1 edits were not judged" in said) == (1, True)


@pytest.mark.parametrize("name", ["addons/save.py", "nothing.py"])
def test_file_that_is_none_of_addons_is_named_before_any_test_runs(name, monkeypatch, capsys):
    """A trace of the whole suite takes minutes: what was typed wrong is said first."""
    monkeypatch.setattr(command, "_tests", lambda *_: pytest.fail("the suite began to run"))
    with pytest.raises(SystemExit):
        command.main(["save.py", name])
    assert name in capsys.readouterr().err
