# SPDX-License-Identifier: Apache-2.0
"""The reference's goldens."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys

import pytest
import transformers
from transformers import tokenization_utils_base

from spec_tests.golden import command
from spec_tests.golden.command import case_names, leftovers, problems_of, produced
from spec_tests.golden.digests import changed_files, write_digests
from spec_tests.golden.eras import Era, era_of, eras_dir, is_recorded, read_eras, write_eras
from spec_tests.golden.recorded import MASKS, recorded
from spec_tests.harness.paths import golden_dir

ADAPTERS = [name for kind, name in case_names() if kind == "adapters"]
WHOLES = [name for kind, name in case_names() if kind == "wholes"]


@pytest.mark.parametrize("name", ADAPTERS)
def test_files_of_an_adapter_are_as_recorded(name):
    assert problems_of("adapters", name) == []


@pytest.mark.parametrize("name", WHOLES)
def test_files_of_a_model_are_as_recorded(name):
    assert problems_of("wholes", name) == []


def test_tokenizer_that_was_read_offline_is_as_recorded(monkeypatch):
    """Machines without a hub set HF_HUB_OFFLINE, and transformers writes that into what it saves."""
    monkeypatch.setattr(tokenization_utils_base, "is_offline_mode", lambda: True)
    assert problems_of("wholes", "tokenizer_words") == []


def test_nothing_is_recorded_for_nothing_or_changed_by_hand():
    assert leftovers() == []


def test_every_mask_hides_something():
    texts = [path.read_text(encoding="utf-8") for path in eras_dir().rglob("*.json")]
    assert [key for key in MASKS if not any(f'"{key}": "(not recorded)"' in text for text in texts)] == []


def test_eras_are_in_order_and_say_why():
    eras = read_eras(eras_dir())
    assert eras
    for era, later in itertools.pairwise(eras):
        assert is_recorded(era.last, era)
        assert not is_recorded(later.first, era)
    assert all(era.why.endswith(".") for era in eras)


@pytest.fixture
def own_goldens(tmp_path, monkeypatch):
    """A copy of the goldens, with one adapter and one model, to change."""
    for place in ("addon/llama", "transformers"):
        shutil.copytree(golden_dir() / place, tmp_path / place)
    monkeypatch.setattr(command, "golden_dir", lambda: tmp_path)
    monkeypatch.setattr(command, "eras_dir", lambda: tmp_path / "transformers")
    monkeypatch.setattr(command, "case_names", lambda: [("adapters", "llama"), ("wholes", "llama")])
    monkeypatch.delenv("CI", raising=False)
    write_digests(tmp_path)
    return tmp_path


def current(own_goldens):
    return own_goldens / "transformers" / era_of(transformers.__version__, read_eras(eras_dir())).name


@pytest.mark.parametrize("name", ["addon/llama/adapter_config.json", "transformers/4.57/llama/config.json"])
@pytest.mark.parametrize("change", ["deleted", "added", "edited"])
def test_golden_that_was_changed_by_hand_is_named(own_goldens, change, name):
    path = own_goldens / name
    if change == "deleted":
        path.unlink()
    elif change == "added":
        path = path.with_name("another.json")
        path.write_text("{}")
    else:
        path.write_text(path.read_text().replace("4", "5", 1))
    (problem,) = changed_files(own_goldens)
    assert problem.startswith(path.relative_to(own_goldens).as_posix())


def test_update_records_and_is_not_green(own_goldens, capsys):
    config = own_goldens / "addon/llama/adapter_config.json"
    before = config.read_bytes()
    config.write_text("{}")
    assert command.goldens(["llama"]) == 1
    assert config.read_text() == "{}"
    assert command.goldens(["llama", "--update-golden"]) == 1
    assert config.read_bytes() == before
    assert "updated, so this run is not green: llama/adapter_config.json" in capsys.readouterr().out
    assert command.goldens(["llama"]) == 0


def test_update_of_some_deletes_none_of_the_others(own_goldens):
    before = set(own_goldens.rglob("*.json"))
    command.goldens(["llama", "--update-golden"])
    assert set(own_goldens.rglob("*.json")) == before


@pytest.mark.parametrize("option", [["--update-golden"], ["--new-era", "9", "--why", "Why not."]])
def test_nothing_is_recorded_on_ci(own_goldens, monkeypatch, capsys, option):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(SystemExit, match="2"):
        command.goldens(option)
    assert "not recorded on CI" in capsys.readouterr().err


def test_newer_transformers_says_what_changed_and_how_to_record_it(own_goldens, monkeypatch, capsys):
    # transformers puts another module in its own place when it is first used: that which the command holds counts.
    monkeypatch.setattr(command.transformers, "__version__", "99.1.0")
    monkeypatch.setattr(command, "produced", lambda kind, name: _another_key(produced(kind, name), kind))
    assert command.goldens(["llama"]) == 1
    out = capsys.readouterr().out
    assert "llama/config.json: differs from its golden: transformers 99.1.0 is newer than" in out
    assert "`a_new_key` is new: 7" in out
    assert '--new-era NAME --why "..."' in out
    assert command.goldens(["--new-era", "99", "--why", "A new key."]) == 1
    assert read_eras(own_goldens / "transformers")[-1] == Era("99", "99.1.0", "99.1.0", "A new key.")
    assert command.goldens(["llama"]) == 0


def _another_key(files, kind):
    if kind == "adapters":
        return files
    content = {**json.loads(files["config.json"]), "a_new_key": 7}
    return {**files, "config.json": (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()}


def test_a_version_lies_in_the_era_that_had_begun():
    eras = [Era("a", "4.57.0", "4.57.6", ""), Era("b", "5.0.0", "5.2.0", "")]
    assert [era_of(version, eras).name for version in ("4.57.3", "5.0.0", "5.1.0", "6.0.0")] == ["a", "b", "b", "b"]
    with pytest.raises(LookupError, match=r"must be 4\.57\.0 or newer"):
        era_of("4.56.2", eras)


def test_list_of_eras_comes_back(tmp_path):
    eras = [Era("a", "1", "2", "Ä.")]
    write_eras(tmp_path, eras)
    assert read_eras(tmp_path) == eras
    assert read_eras(tmp_path / "none") == []


def test_checkpoint_of_anybody_is_compared_with_what_was_recorded_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    checkpoint, golden = tmp_path / "checkpoint", tmp_path / "golden"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text('{"b": 1, "transformers_version": "5.0"}')
    arguments = [str(checkpoint), "--against", str(golden)]
    assert command.regress(arguments) == 1
    assert not golden.exists()
    assert command.regress([*arguments, "--update-golden"]) == 1
    assert command.regress(arguments) == 0
    (checkpoint / "config.json").write_text('{"transformers_version": "5.1", "b": 1}')
    assert command.regress(arguments) == 0
    (checkpoint / "config.json").write_text('{"b": true}')
    assert command.regress(arguments) == 1
    assert "`b` was 1, is true" in capsys.readouterr().err


USERS_TEST = """
def test_checkpoint(checkpoint_golden, tmp_path):
    (tmp_path / "config.json").write_text('{"r": %s}')
    checkpoint_golden(tmp_path, "mine")
"""


def test_fixture_for_the_tests_of_others(tmp_path):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["spec_tests.golden.fixture"]')

    def run(number, *options):
        (tmp_path / "test_it.py").write_text(USERS_TEST % number)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_it.py"]
        environment = {name: value for name, value in os.environ.items() if name != "CI"}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # pytest alone, as fast as it is
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert run(1, "--update-golden").returncode == 1
    changed = run(2)
    assert changed.returncode == 1
    assert "mine/config.json: differs from its golden" in changed.stdout
    assert "`r` was 1, is 2" in changed.stdout
    assert (tmp_path / "goldens" / "mine" / "config.json").exists()


def test_dumped_tree_is_what_is_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "case_names", lambda: [("adapters", "llama"), ("wholes", "llama")])
    assert command.dump([str(tmp_path / "tree")]) == 0
    assert recorded(tmp_path / "tree" / "wholes" / "llama") == produced("wholes", "llama")
    assert list(command.cases_below(tmp_path / "tree")) == [("adapters", "llama"), ("wholes", "llama")]
    with pytest.raises(SystemExit, match="2"):
        command.dump([str(tmp_path / "tree")])
    assert "must be new or empty" in capsys.readouterr().err
