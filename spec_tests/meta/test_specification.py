# SPDX-License-Identifier: Apache-2.0
"""The specification and the tests of the areas belong together, one to one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spec_tests import where
from spec_tests.harness.clauses import load_clauses
from spec_tests.harness.known_failures import name_of_test
from spec_tests.harness.paths import area_tests, is_of, package_dir, spec_dir
from spec_tests.implementations.base import PARTS
from spec_tests.meta.forks import in_a_fork


class Collected:
    """A pytest plugin that writes down the clauses of each test and what it needs, by the test's id."""

    def __init__(self, path):
        self.path = path

    @pytest.hookimpl(wrapper=True)  # before any test is left out
    def pytest_collection_modifyitems(self, items):
        found = {
            mark: {item.nodeid: [name for one in item.iter_markers(mark) for name in one.args] for item in items}
            for mark in ("clause", "needs")
        }
        self.path.write_text(json.dumps(found), encoding="utf-8")
        return (yield)


@pytest.fixture(scope="module")
def marks_of_tests(tmp_path_factory):
    """What the marks of each test of the areas say, by the mark and the test's id."""
    package, directory = package_dir(), tmp_path_factory.mktemp("collected")
    options = ["--collect-only", "-q", "-p", "spec_tests.plugin", "-p", "no:cacheprovider", "-n0"]
    files = [str(path) for path in area_tests()]
    arguments = ["-c", str(package / "conformance.ini"), *options, *files]
    plugins = [Collected(directory / "tests.json")]
    code = in_a_fork(lambda: int(pytest.main(arguments, plugins=plugins)), directory / "output")
    assert code == 0, (directory / "output").read_text(encoding="utf-8")
    return json.loads((directory / "tests.json").read_text(encoding="utf-8"))


@pytest.fixture
def clauses_of_tests(marks_of_tests):
    """The clauses of each test of the areas, by the test's id."""
    return marks_of_tests["clause"]


def test_what_a_test_needs_can_be_claimed(marks_of_tests):
    # A test that needs what nobody may claim is never run.
    known = PARTS.union(*(clause.needs for clause in load_clauses().values()))
    assert {nodeid: needs for nodeid, needs in marks_of_tests["needs"].items() if not known.issuperset(needs)} == {}


def test_every_test_of_an_area_carries_a_clause(clauses_of_tests):
    assert clauses_of_tests
    assert [nodeid for nodeid, clauses in sorted(clauses_of_tests.items()) if not clauses] == []


def test_every_clause_has_a_test_or_says_why_not(clauses_of_tests):
    tested = {clause for clauses in clauses_of_tests.values() for clause in clauses}
    assert tested == {clause.id for clause in load_clauses().values() if not clause.untestable}


def test_tests_of_a_clause_are_found_without_collecting_them(clauses_of_tests):
    for clause_id in load_clauses():
        collected = {file_and_name(nodeid) for nodeid, clauses in clauses_of_tests.items() if clause_id in clauses}
        assert {(place.path.name, place.what) for place in where.in_tests(clause_id)} == collected


def file_and_name(nodeid):
    """The name of the file and of the function, of a test's id."""
    return Path(nodeid.partition("::")[0]).name, name_of_test(nodeid).partition("[")[0]


def test_every_clause_is_one_sentence():
    # A sentence a clause keeps outcomes apart; an abbreviation's dot is inside a word or code.
    assert [c.id for c in load_clauses().values() if not c.text.endswith(".")] == []


def test_files_of_tests_are_named_after_those_of_the_specification():
    stems = {path.stem for path in spec_dir().glob("*.md")}
    assert [path.name for path in area_tests() if not is_of(stems, path.stem.removeprefix("test_"))] == []


def test_no_file_of_tests_needs_another():
    # In their text, and not in their imports alone: some have programs for other processes.
    assert [path.name for path in area_tests() if "spec_tests.areas" in path.read_text(encoding="utf-8")] == []
