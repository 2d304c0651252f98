# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests clauses --where``: what the search finds is what there is."""

from __future__ import annotations

import json

import pytest

from spec_tests import __main__ as program
from spec_tests import where
from spec_tests.harness.clauses import load_clauses
from spec_tests.mutants.registry import mutants


def test_every_clause_is_found_in_its_file_and_at_its_mutants():
    for clause_id, clause in load_clauses().items():
        (bullet,) = where.in_spec(clause_id, clause.file)
        assert clause.text in bullet.what, clause_id
        assert line(bullet).removeprefix("- ") == bullet.what
        found = list(where.in_mutants(clause_id))
        assert {place.what for place in found} == {one.name for one in mutants().values() if clause_id in one.kills}
        assert all(line(place).startswith(f"def {place.what}(") for place in found), clause_id


UNPLACED = {
    "LOAD-002": "numbers of a whole save: every step that touches a tensor, a name or a scale has a part in them",
    "LOAD-010": "the same rules for every family: no line of the code is for one of them alone",
    "LOAD-011": "as LOAD-010",
}
"""Clauses that no single place of addons/ keeps, and why."""


def test_every_clause_stands_at_the_code_that_keeps_it():
    placed = {clause_id for clause_id in load_clauses() if any(where.in_code(clause_id))}
    assert load_clauses().keys() - placed == UNPLACED.keys()


def line(place):
    return place.path.read_text(encoding="utf-8").splitlines()[place.line - 1]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("(clause ADP-013)", {"ADP-013"}),
        ("(clauses TGT-004, HOOK-007)", {"TGT-004", "HOOK-007"}),
        ("(clauses ADP-001 to ADP-003)", {"ADP-001", "ADP-002", "ADP-003"}),
        ("ADP-013x, XADP-1, utf-8", set()),
    ],
)
def test_code_names_clauses_alone_and_in_ranges(tmp_path, monkeypatch, text, named):
    (tmp_path / "named_clauses").mkdir()
    (tmp_path / "named_clauses" / "__init__.py").write_text(f"\nx = 1  # {text}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(where, "BUNDLED", "named_clauses")
    found = {clause_id: list(where.in_code(clause_id)) for clause_id in load_clauses()}
    assert {clause_id for clause_id, places in found.items() if places} == named
    assert all((place.line, place.what) == (2, f"x = 1  # {text}") for places in found.values() for place in places)


def test_places_of_a_clause_are_printed(capsys):
    assert program.main(["clauses", "--where", "ADP-013", "--where", "TGT-002"]) == 0
    lines = capsys.readouterr().out.splitlines()
    kinds = [text.split()[0] for text in lines]
    assert list(dict.fromkeys(kinds)) == ["spec", "test", "mutant", "code"]
    assert kinds.count("spec") == 2
    assert [text.split(maxsplit=2)[2] for text in lines if text.startswith("test ")] == [
        "test_unknown_base_model_is_no_placeholder",
        "test_split_projections_are_listed_by_their_parts",
    ]


def test_unknown_clause_has_no_place(capsys):
    assert program.main(["clauses", "--where", "ADP-999"]) == pytest.ExitCode.USAGE_ERROR
    said = capsys.readouterr()
    assert said.out == ""
    assert "ADP-999: no such clause; nearest:" in said.err


def test_clauses_are_data_with_their_tests_their_mutants_and_the_cases_of_a_run(tmp_path, capsys):
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"clauses": {"ADP-001": {"executed": 7}}}), encoding="utf-8")
    assert program.list_clauses(["--json", "--report", str(report)]) == 0
    data = {one["id"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(data) == list(load_clauses())
    assert {clause_id: one["cases"] for clause_id, one in data.items() if "cases" in one} == {"ADP-001": 7}
    for clause_id, one in data.items():
        assert (one["text"], one["needs"]) == (load_clauses()[clause_id].text, list(load_clauses()[clause_id].needs))
        assert set(one["mutants"]) == {m.name for m in mutants().values() if clause_id in m.kills}
        assert one["tests"], clause_id
    assert program.list_clauses(["--json"]) == 0
    assert not any("cases" in one for one in json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"clauses": {"ADP-001": {}}}'])
def test_a_file_that_is_no_report_is_refused_in_a_sentence(tmp_path, capsys, content):
    report = tmp_path / "report.json"
    if content is not None:
        report.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit) as error:
        program.list_clauses(["--json", "--report", str(report)])
    assert error.value.code == 2
    assert "must be what --report-json has written" in capsys.readouterr().err
