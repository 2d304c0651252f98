# SPDX-License-Identifier: Apache-2.0
"""Faults befall the process and the call that they are meant for; what they left is judged; the README says it."""

from __future__ import annotations

import os

import pytest

from spec_tests.faults import command, readme
from spec_tests.faults.saves import NEW, OLD, PEERS, kinds_of
from spec_tests.faults.tracing import Fault, calls_of, missing_tool, run
from spec_tests.faults.walk import WRONG
from spec_tests.harness.paths import package_dir

traced = pytest.mark.skipif(missing_tool() is not None, reason=missing_tool() or "strace is there")


def write_twice(path):
    """A body that opens a file, and then writes into it, twice, whatever becomes of the first."""

    def body():
        def act():
            file = os.open(path, os.O_WRONLY | os.O_CREAT)
            for text in (b"one", b"two"):
                os.write(file, text)

        return act

    return body


@traced
@pytest.mark.parametrize(
    ("what", "how", "left"),
    [("SIGKILL", "killed", b"one"), ("SIGINT", "error", b"onetwo"), ("ENOSPC", "error", b"one")],
)
def test_fault_comes_at_its_call(tmp_path, what, how, left):
    path, log = tmp_path / "file", tmp_path / "log"
    assert calls_of([write_twice(path)], 0, log, tmp_path) == [("openat", 1), ("write", 1), ("write", 2)]
    path.unlink()
    (ended,) = run([write_twice(path)], 0, log, Fault("write", 2, what))
    assert (ended.how, path.read_bytes()) == (how, left)


@traced
def test_only_the_traced_process_is_struck(tmp_path):
    bodies = [write_twice(tmp_path / name) for name in "ab"]
    ended = run(bodies, 1, tmp_path / "log", Fault("write", 1, "SIGKILL"))
    assert [one.how for one in ended] == ["done", "killed"]
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"onetwo", b"")


@traced
def test_save_that_does_not_succeed_by_itself_is_no_case(tmp_path):
    with pytest.raises(RuntimeError, match="undisturbed"):
        calls_of([write_twice(tmp_path / "no" / "directory")], 0, tmp_path / "log", tmp_path)


@pytest.mark.parametrize("kind", kinds_of(PEERS), ids=lambda kind: kind.name)
def test_readers_tell_one_save_from_another_and_from_a_mixture(tmp_path, kind):
    for number in (OLD, NEW):
        kind.save(kind.live(number), tmp_path / str(number))
        assert kind.numbers(tmp_path / str(number)) == {number}
    (tmp_path / str(NEW) / kind.marker).replace(tmp_path / str(OLD) / kind.marker)
    assert kind.numbers(tmp_path / str(OLD)) == {OLD, NEW}


@traced
def test_row_that_does_not_exist_is_named(capsys):
    assert command.main(["--row", "no such"]) == 2
    assert "no such" in capsys.readouterr().err


def test_missing_tool_is_named(monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert command.main([]) == 2
    assert "strace" in capsys.readouterr().err


def test_reference_loses_nothing():
    results = readme.committed()
    assert results[0]["contender"].startswith("reference")
    assert {one: results[0]["outcomes"][one] for one in WRONG} == dict.fromkeys(WRONG, 0)
    assert min(results[0]["points"].values()) > 400
    assert results[0]["ranks"] == [1, 2, 4]


def test_readme_shows_what_is_committed():
    assert readme.section() in (package_dir().parent / "README.md").read_text(encoding="utf-8")
