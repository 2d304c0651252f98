# SPDX-License-Identifier: Apache-2.0
"""Released exporters: their environments, what is recorded of them, and what is not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from spec_tests.exporters import command, subjects
from spec_tests.exporters.cases import BY_ID, CATALOGUE
from spec_tests.harness.paths import fixtures_dir, package_dir


def test_bindings_are_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (package_dir() / "subjects").glob("*.py")}
    assert {name for name, lines in lengths.items() if lines > 60} == set()


def test_what_is_recorded_stands_in_the_readme():
    directory = fixtures_dir() / "exporters"
    assert {path.stem for path in directory.glob("*.json")} <= subjects.SUBJECTS.keys()
    readme = (fixtures_dir().parent / "README.md").read_text(encoding="utf-8")
    assert subjects.table(directory) in readme
    assert f"each of {len(CATALOGUE)} cases" in readme


def test_recorded_runs_were_judged_whole_and_accuse_nobody_who_is_right():
    for name in subjects.SUBJECTS:
        content = json.loads((fixtures_dir() / "exporters" / f"{name}.json").read_text(encoding="utf-8"))
        assert content["cases"].keys() == BY_ID.keys(), name
        assert "not judged" not in {one["said"] for one in content["cases"].values()}
        if name.partition("-")[0] in ("peft", "transformers"):
            assert {one["said"] for one in content["cases"].values()} <= {"right", "refused", "cannot"}


@pytest.mark.parametrize(("ending", "said"), [(0, "passed"), (3, "ended with 3")])
def test_further_check_of_a_subject_passes_by_its_exit_code(tmp_path, capsys, ending, said):
    check = tmp_path / "check.py"
    check.write_text(f"import os, sys; sys.exit({ending} if os.listdir(sys.argv[1]) == [] else 1)", encoding="utf-8")
    assert subjects._passes(Path(sys.executable), str(check)) is (ending == 0)
    assert said in capsys.readouterr().out


def test_environment_is_made_again_when_it_was_cut_off_or_has_other_pins(tmp_path, monkeypatch):
    def cut_off(*_arguments, **_options):
        raise KeyboardInterrupt

    nothing = subjects.Subject("peft_save.py", "1", ())
    monkeypatch.setattr(subjects.subprocess, "run", cut_off)
    python = subjects._environment(tmp_path / "place", nothing)
    assert python.exists()
    (tmp_path / "place" / "kept").touch()
    assert subjects._environment(tmp_path / "place", nothing) == python
    assert (tmp_path / "place" / "kept").exists()
    other = subjects.Subject("peft_save.py", "1", ("torch==0",))
    with pytest.raises(KeyboardInterrupt):
        subjects._environment(tmp_path / "place", other)
    assert not (tmp_path / "place" / "kept").exists()
    with pytest.raises(KeyboardInterrupt):
        subjects._environment(tmp_path / "place", other)


def test_directory_of_somebody_else_is_no_environment_to_be_made_again(tmp_path):
    (tmp_path / "peft" / "src").mkdir(parents=True)
    with pytest.raises(SystemExit, match="name another --target"):
        subjects._environment(tmp_path / "peft", subjects.SUBJECTS["peft"])
    assert (tmp_path / "peft" / "src").exists()


def test_run_without_every_case_judged_leaves_the_record(tmp_path, monkeypatch, capsys):
    def run(words):
        content = {
            "implementation": {"name": "peft", "version": "1"},
            "packages": {"peft": "1", "transformers": "1"},
            "clauses": {},
            "cases": {"one": {"said": "right", "findings": []}, "two": {"said": "not judged", "findings": []}},
        }
        Path(words[words.index("--report-json") + 1]).write_text(json.dumps(content), encoding="utf-8")

    monkeypatch.setattr(command, "main", run)
    monkeypatch.setattr(subjects, "_environment", lambda *_: Path(sys.executable))
    monkeypatch.setenv("PYTHONPATH", "")
    (tmp_path / "peft.json").write_text("kept", encoding="utf-8")
    (tmp_path / "target").mkdir()
    assert not subjects._judged("peft", tmp_path / "target", tmp_path)
    assert (tmp_path / "peft.json").read_text() == "kept"
    assert "peft: not recorded" in capsys.readouterr().out
