# SPDX-License-Identifier: Apache-2.0
"""The mutants: what is registered, that they touch nothing but their copy, and that the runner can fail."""

from __future__ import annotations

import ast
import importlib
import os
import sys
import tempfile
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

import addons
from spec_tests.harness.clauses import load_clauses
from spec_tests.harness.paths import is_of, spec_dir
from spec_tests.loading import load
from spec_tests.meta.forks import in_a_fork
from spec_tests.mutants import editing, editing_source, killers, registry, runner, soon
from spec_tests.mutants.judging import Judgement, judged
from spec_tests.mutants.registry import Mutant, mutants

MUSTS = [clause.id for clause in load_clauses().values() if clause.keyword == "MUST" and not clause.untestable]
NAMES = list(mutants())

# Pairs of clauses of one area that the same mutants break, with the reason why that is right.
TWINS: dict[tuple[str, str], str] = {}


@pytest.fixture(autouse=True)
def _restored(monkeypatch, tmp_path):
    # A private copy lies in the temporary directory, and extends both paths.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))


def caught_by(clause):
    return {one.name for one in mutants().values() if clause in one.kills}


def test_every_mutant_is_described():
    for one in mutants().values():
        assert one.kills, one.name
        assert set(one.kills) <= load_clauses().keys(), one.name
        assert one.doc.endswith("."), one.name
        assert one.source, one.name


def test_files_of_mutants_are_named_after_those_of_the_specification():
    stems = {path.stem for path in spec_dir().glob("*.md")}
    files = {one.breaks.__module__.rpartition(".")[2] for one in mutants().values()}
    named = {name for name in files if not name.startswith("shifted_")}
    assert [name for name in sorted(named) if not is_of(stems, name)] == []


def test_text_that_a_mutant_edits_is_there_once(monkeypatch):
    edits, edit = [], editing_source.edit
    for one in mutants().values():
        module = sys.modules[one.breaks.__module__]
        if vars(module).get("edit") is edit:
            with monkeypatch.context() as patched:
                patched.setattr(module, "edit", lambda _package, *what: edits.append(what))
                one.breaks(addons)
    assert len(edits) > 80
    for file, before, after in edits:
        source = Path(addons.__file__).with_name(file).read_text(encoding="utf-8")
        assert source.count(before) == 1, (file, before)
        ast.parse(source.replace(before, after))


def test_copy_with_edited_text_is_imported_anew():
    before = '_NUMBER = "[0-9]" * 5'
    copy = registry.broken_copy(made(lambda copy: editing_source.edit(copy, "save.py", before, "_NUMBER = '*'"), ["X"]))
    save = importlib.import_module(f"{copy.__name__}.save")
    assert save._NUMBER == "*"
    assert copy.save_consolidated is save.save_consolidated
    with pytest.raises(LookupError, match=r"save\.py must hold 'nothing like it' once, got 0 times"):
        registry.broken_copy(made(lambda copy: editing_source.edit(copy, "save.py", "nothing like it", ""), ["X"]))


def test_areas_of_mutants_exist():
    areas = {clause.area for clause in load_clauses().values()}
    assert {area for one in mutants().values() for area in one.also} <= areas


def test_every_must_has_a_mutant():
    assert [clause for clause in MUSTS if not caught_by(clause)] == []


def test_no_two_musts_of_an_area_have_the_same_mutants():
    clauses = load_clauses()
    same = {
        pair
        for pair in combinations(MUSTS, 2)
        if clauses[pair[0]].area == clauses[pair[1]].area and caught_by(pair[0]) == caught_by(pair[1])
    }
    assert same == set(TWINS)


@pytest.mark.parametrize("name", NAMES[::20])
def test_mutant_is_a_copy(name):
    assert registry.broken_copy(mutants()[name]).__name__ != "addons"


@pytest.mark.parametrize("where", ["addons.PeftAddon", "addons.files.something"])
def test_mutant_that_touches_the_real_package_is_an_error(monkeypatch, where):
    module, _, name = where.rpartition(".")
    if name == "PeftAddon":
        monkeypatch.setattr(where, addons.PeftAddon)
    else:
        monkeypatch.setattr(f"{module}.{name}", None, raising=False)
    # What monkeypatch has noted it takes back; the mutant itself sets it by hand.
    careless = made(lambda _copy: setattr(sys.modules[module], name, object()), ("ADP-001",))
    with pytest.raises(RuntimeError, match=where):
        registry.broken_copy(careless)


def test_function_that_is_not_there_cannot_be_replaced():
    with pytest.raises(LookupError, match="nowhere in spec_tests"):
        editing.replace(importlib.import_module("spec_tests"), object(), None)


def test_name_registered_twice_is_refused():
    one = next(iter(mutants().values()))
    with pytest.raises(ValueError, match=one.name):
        registry.mutant(kills=["TGT-001"])(one.breaks)


def test_mutants_are_selected_by_name_and_by_area():
    names = [one.name for one in registry.selected(["returns_the_path"], ["TOK"])]
    assert "returns_the_path" in names
    assert {"saves_the_tokenizer_on_every_rank", "publishes_no_subdirectories"} < set(names)
    assert registry.selected([], []) == list(mutants().values())


@pytest.mark.parametrize(
    ("arguments", "said"), [(["returns_a_path"], "returns_the_path"), (["--area", "TOK,XXX"], "area XXX")]
)
def test_unknown_mutant_or_area_is_a_usage_error(capsys, arguments, said):
    assert runner.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_mutant_is_an_implementation_by_its_name():
    loaded = load("mutant:returns_the_path")
    assert loaded.name == "mutant:returns_the_path"
    with pytest.raises(pytest.UsageError, match="no_such_mutant"):
        load("mutant:no_such_mutant")


def unbroken(_addons):
    """Nothing is wrong."""


def ruinous(addons):
    """It cannot even be loaded."""
    del addons.PeftAddon


def made(breaks, kills, also=()):
    return Mutant(breaks.__name__, kills, also, "a test of the suite", breaks, breaks.__doc__ or "")


def report(**outcomes):
    return {"clauses": {clause.replace("_", "-"): {"outcome": outcome} for clause, outcome in outcomes.items()}}


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({"TGT_004": "FAIL", "TGT_001": "FAIL", "LOAD_001": "FAIL"}, Judgement()),
        ({"TGT_004": "FAIL", "ADP_001": "FAIL"}, Judgement()),
        ({"TGT_004": "FAIL", "EXP_001": "FAIL"}, Judgement(collateral=("EXP-001",))),
        ({"TGT_004": "PASS", "TGT_001": "FAIL"}, Judgement(survived=("TGT-004",))),
        ({"TGT_004": "NOT-TESTABLE"}, Judgement(survived=("TGT-004",))),
        ({"TGT_004": "STALE"}, Judgement(survived=("TGT-004",))),
        ({}, Judgement(survived=("TGT-004",))),
    ],
)
def test_judgement(outcomes, expected):
    one = made(unbroken, ("TGT-004",), ("ADP",))
    assert judged(one, report(**outcomes)) == expected


@pytest.mark.parametrize("short", [{"survived": ("A",)}, {"collateral": ("A",)}, {"problem": "none"}])
def test_caught_means_nothing_is_left_to_say(short):
    assert Judgement().caught
    assert not Judgement(**short).caught


def test_alone_is_a_run_for_each_clause(monkeypatch, capsys):
    ran = {}

    def check(by_name, **_options):
        ran.update({name: one.kills for name, one in by_name.items()})
        return ["both, ADP-002"]

    one = replace(made(unbroken, ("ADP-001",)), name="one")
    both = replace(one, name="both", kills=("ADP-001", "ADP-002"))
    monkeypatch.setattr(runner, "check", check)
    monkeypatch.setattr(runner, "selected", lambda _names, _areas: [one, both])
    monkeypatch.setattr(runner.children, "warm", lambda: None)
    assert runner.main(["--alone"]) == 1
    assert ran == {"one": ("ADP-001",), "both, ADP-001": ("ADP-001",), "both, ADP-002": ("ADP-002",)}
    assert "1 of 2 mutants caught" in capsys.readouterr().out


RAN = """
def ran(what):
    with open("ran", "a") as file:
        file.write(f"{what} ")

@pytest.mark.clause("ALP-002")
@pytest.mark.parametrize("case", [1, 2, 3])
def test_cases(case):
    ran(f"two-{case}")
    assert case < 2

@pytest.mark.clause("ALP-004")
@pytest.mark.parametrize("case", [1, 2])
def test_more_cases(case):
    ran(f"four-{case}")

@pytest.mark.clause("ALP-002", "ALP-004")
@pytest.mark.parametrize("case", [1, 2, 3])
def test_both(case):
    ran(f"both-{case}")
    assert case < 3
"""


def test_run_of_a_mutant_leaves_out_what_has_failed(sample):
    """A case of each function comes before the second of any, and of a clause that has failed nothing more is asked."""
    sample.tests(two="ran('two')", four="ran('four')", more=RAN)
    asked = ("--clause", "ALP-002", "--clause", "ALP-004")
    sample.run("--conformance", "-p", soon.__name__, *asked)
    assert (sample.directory / "ran").read_text() == "two four two-1 four-1 both-1 two-2 four-2 both-2 both-3 "
    assert {clause: sample.outcomes[clause] for clause in asked[1::2]} == {"ALP-002": "FAIL", "ALP-004": "FAIL"}
    (sample.directory / "ran").unlink()
    noticed = [test for test, status in sample.report["cases"].items() if status == "failed"]
    sample.run("--conformance", "-p", soon.__name__, *asked, *(f"--first={test}" for test in noticed))
    assert (sample.directory / "ran").read_text() == "two-2 both-3 "


def test_record_of_killers_is_sorted_and_read_back(tmp_path):
    path = tmp_path / "killers.txt"
    assert killers.read(path) == {}
    killers.write({"two": ["test.py::b[a b]", "test.py::a"], "one": ["test.py::b[a b]"]}, path)
    assert path.read_text() == "test.py::a\ttwo\ntest.py::b[a b]\tone two\n"
    assert killers.read(path) == {"two": ["test.py::a", "test.py::b[a b]"], "one": ["test.py::b[a b]"]}


@pytest.mark.long
def test_runner_tells_caught_from_survived(monkeypatch, tmp_path):
    """Two real mutants, one without a fault, and one that cannot even be loaded, in one run of the runner."""
    broken = [made(unbroken, ("ADP-001",)), made(ruinous, ("ADP-001",))]
    for one in broken:
        monkeypatch.setitem(mutants(), one.name, one)
    names = ["writes_bias_as_a_flag", "returns_the_path"]
    output, record = tmp_path / "output", tmp_path / "killers.txt"
    monkeypatch.setattr(killers, "FILE", record)
    code = in_a_fork(lambda: runner.main([*names, "unbroken", "ruinous", "--record"]), output)
    said = output.read_text(encoding="utf-8")
    assert code == 1, said
    assert [name for name in names if f"] {name}: caught" in said] == names, said
    assert "] unbroken: SURVIVED ADP-001" in said
    assert "--impl mutant:unbroken --clause ADP-001" in said
    assert "] ruinous: NO RESULT" in said
    assert "] (unbroken): passes" in said
    assert "2 of 4 mutants caught" in said
    assert sorted(killers.read(record)) == sorted(names)
    assert all(test.startswith("areas/") for tests in killers.read(record).values() for test in tests)
