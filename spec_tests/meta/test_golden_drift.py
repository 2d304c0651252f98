# SPDX-License-Identifier: Apache-2.0
"""How changes of golden files are told: key by key, and from era to era."""

from __future__ import annotations

import json

import pytest

from spec_tests.golden import command, reading
from spec_tests.golden.changes import changes
from spec_tests.golden.compare import compared, unused
from spec_tests.golden.drift import DOCUMENT, document, drift, main, tree
from spec_tests.golden.eras import eras_dir, read_eras
from spec_tests.golden.reading import READS, verdicts
from spec_tests.golden.recorded import recorded
from spec_tests.harness.paths import golden_dir


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, []),
        ({"a": 1}, {"a": 2}, ["`a` was 1, is 2"]),
        ({"a": 1}, {"a": 1.0}, ["`a` was 1, is 1.0"]),
        ({"a": 1}, {"a": True}, ["`a` was 1, is true"]),
        ({"a": 1}, {}, ["`a` is gone, was 1"]),
        ({}, {"a": None}, ["`a` is new: null"]),
        ({}, {"a": {}}, ["`a` is new: {}"]),
        ({"a": {}}, {"a": {"b": 1}}, ["`a` is gone, was {}", "`a.b` is new: 1"]),
        ({"a": 1, "x": 0}, {"a": {"b": 1}, "x": 0}, ["`a` is gone, was 1", "`a.b` is new: 1"]),
        ({"theta": 5.0}, {"rope": {"theta": 5.0}}, ["`theta` has moved to `rope.theta`"]),
        ({"num_experts": 4}, {"num_local_experts": 4}, ["`num_experts` is called `num_local_experts`"]),
        ({"a": 1, "b": 1}, {"c": 1}, ["`a` is gone, was 1", "`b` is gone, was 1", "`c` is new: 1"]),
        ({"a": {"b": {"c": 1, "d": 2}}, "z": 0}, {"z": 0}, ['`a` is gone, was {"b": {"c": 1, "d": 2}}']),
        ({"l": [1, 2]}, {"l": [2, 1]}, ["`l` was [1, 2], is [2, 1]"]),
        (
            {"t": {"a.x.0.w": "F", "a.x.1.w": "F"}},
            {"t": {"a.0.w": "F", "a.1.w": "F"}},
            ["names that began with `a.x` begin with `a`"] * 2,
        ),
        ([1], [2], ["`` was [1], is [2]"]),
    ],
)
def test_changes_are_told_in_plain_words(old, new, said):
    assert [str(change) for change in changes(old, new)] == said


FILES = {"a.json": b'{\n"r": 1\n}\n', "b.json": b"{}\n", "code/c.py": b"x = 1\n"}


@pytest.fixture
def folder(tmp_path):
    compared(tmp_path / "case", FILES, update=True)
    return tmp_path / "case"


def test_equal_files_are_no_problem(folder):
    assert compared(folder, FILES) == []
    assert compared(folder, FILES, update=True) == []


@pytest.mark.parametrize(
    ("produced", "said"),
    [
        ({**FILES, "c.json": b"{}"}, "case/c.json: there is no golden"),
        ({"a.json": FILES["a.json"], "code/c.py": b"x = 1\n"}, "case/b.json: golden of a file that is not written"),
        ({**FILES, "a.json": b'{\n"r": 2\n}\n'}, "`r` was 1, is 2"),
        ({**FILES, "a.json": b'{"r": 1}'}, "written in another way"),
        ({**FILES, "a.json": b"{"}, "-}"),
        ({**FILES, "code/c.py": b"x = 2\n"}, "-x = 1\n  +x = 2"),
    ],
)
def test_difference_is_named_and_an_update_ends_it(folder, produced, said):
    (problem,) = compared(folder, produced)
    assert said in problem
    assert "--update-golden" in problem
    (updated,) = compared(folder, produced, update=True)
    assert updated.startswith("updated, so this run is not green")
    assert compared(folder, produced) == []


def test_golden_of_no_case_is_named(folder):
    assert unused(folder.parent, {"case"}) == []
    assert unused(folder.parent, set()) == ["case: golden of no case: remove it"]


def test_drift_of_an_era_to_itself_is_none():
    name = read_eras(eras_dir())[-1].name
    assert drift(tree(name), tree(name)) == {}


def test_drift_to_version_5_has_what_is_known(capsys):
    newest = read_eras(eras_dir())[-1]
    assert main(["4.57", newest.name]) == 0
    out = capsys.readouterr().out
    assert "`rope_theta` has moved to `rope_parameters.rope_theta`" in out
    assert "`num_experts` is called `num_local_experts`" in out
    assert "`tokenizer_class` was" in out
    assert "## special_tokens_map.json\n\n- the file is not written any more" in out
    assert out.count("is gone, was") > 40
    # What the add-on decides has not changed, but for the names of modules.
    own = out[: out.index("## config.json")]
    assert "automodel_peft_config" not in own
    assert main(["5.23.0", newest.last]) == 0
    assert "No file of any checkpoint changes" in capsys.readouterr().out


def test_committed_report_is_that_of_the_goldens(capsys):
    assert main(["--all"]) == 0
    assert capsys.readouterr().out == document() == (golden_dir() / DOCUMENT).read_text(encoding="utf-8")


def test_drift_as_json_and_html(capsys):
    assert main(["4.57", "5.0", "--json"]) == 0
    assert "config.json" in json.loads(capsys.readouterr().out)
    assert main(["4.57", "5.0", "--html"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")


def test_drift_between_directories(tmp_path, capsys):
    for name, number in (("old", 1), ("new", 2)):
        case = tmp_path / name / "wholes" / "mine"
        case.mkdir(parents=True)
        (case / "config.json").write_text(json.dumps({"a": number}))
    assert main([str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    assert "- `a` was 1, is 2 (mine)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nothing", "3.0", "."])
def test_drift_of_what_is_not_there_says_so(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([name, "5.0"])
    assert "Traceback" not in (err := capsys.readouterr().err)
    assert "must be" in err


def test_weights_are_recorded_without_their_numbers(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2, 3)}, tmp_path / "x.safetensors", {"format": "pt"})
    content = json.loads(recorded(tmp_path)["x.safetensors.json"])
    assert content == {"metadata": {"format": "pt"}, "tensors": {"a": "F32 [2, 3]"}}


OWN = {"off": 0.0, "rope theta": 5.0, "token ids": [1], "tokenizer": "A"}


@pytest.mark.parametrize(
    ("own", "other", "verdict"),
    [
        (OWN, OWN, "right"),
        (OWN, {**OWN, "off": 1e-5}, "right"),
        (OWN, {**OWN, "tokenizer": "B"}, "right, with tokenizer 'A' -> 'B'"),
        (OWN, {**OWN, "off": 0.5, "rope theta": 1.0}, "WRONG: outputs 0.5 off; rope theta 5.0 -> 1.0"),
        ({**OWN, "off": 0.01}, {**OWN, "off": 0.015}, "right"),
        ({**OWN, "off": 0.01}, {**OWN, "off": 0.5}, "WRONG: outputs 0.5 off"),
        (OWN, {**OWN, "token ids": [2]}, "WRONG: token ids [1] -> [2]"),
        (OWN, {"error": "ValueError: no"}, "refused: ValueError: no"),
        ({"error": "a"}, {"error": "b"}, "as by itself"),
        ({"error": "a"}, OWN, "right"),
    ],
)
def test_verdict_of_a_reader(own, other, verdict):
    assert verdicts({"case": own}, {"case": other}) == {"case": verdict}


def facts_of(written, read):
    return json.loads((golden_dir() / READS / f"{written}-{read}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("written", ["4.57", "5.0", "5.19"])
def test_what_is_written_for_version_4_is_read_by_it(written):
    found = verdicts(facts_of(written, written), facts_of(written, "4.57"))
    for_it = {case: verdict for case, verdict in found.items() if case.endswith(".v4")}
    assert len(for_it) > 20
    assert {case: verdict for case, verdict in for_it.items() if not verdict.startswith("right")} == {}


def test_tree_is_read_as_it_was_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "case_names", lambda: [("wholes", "llama"), ("wholes", "tokenizer_word_piece")])
    assert command.dump([str(tmp_path / "tree")]) == 0
    assert reading.main([str(tmp_path / "tree"), str(tmp_path / "facts.json")]) == 0
    found = json.loads((tmp_path / "facts.json").read_text())
    assert found["llama"]["off"] < 1e-5
    assert found["tokenizer_word_piece"]["tokenizer"] is not None
    with pytest.raises(SystemExit, match="2"):
        reading.main([str(tmp_path), str(tmp_path / "facts.json")])
    assert "must be a tree" in capsys.readouterr().err
