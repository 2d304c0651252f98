# SPDX-License-Identifier: Apache-2.0
"""The reference's goldens, and the rules by which goldens are compared."""

from __future__ import annotations

import json

import pytest

from spec_tests.builders.catalogue import TRAINED
from spec_tests.harness.export import WEIGHTS, save_adapter, snapshot
from spec_tests.harness.golden import compared, unused
from spec_tests.harness.paths import fixtures_dir
from spec_tests.loading import load

CASES = ("llama", "llama_dora", "qwen3_moe_fused", "qwen3_moe_v4")


def addon_goldens():
    return fixtures_dir() / "golden" / "addon"


@pytest.mark.parametrize("case", CASES)
def test_adapter_is_as_recorded(fresh_dir, update_golden, case):
    spec, reference = TRAINED[case], load("reference")
    config = spec.peft_config(reference.peft_config)
    adapter = save_adapter(reference, spec.trained(reference.adapters), fresh_dir(), config, **spec.save)
    files = snapshot(adapter.directory)
    # What the tensors hold is for the properties and the reload; here a changed key, shape or dtype shows.
    tensors = {key: f"{tensor.dtype} {list(tensor.shape)}" for key, tensor in sorted(adapter.tensors.items())}
    files["tensors.json"] = (json.dumps(tensors, indent=2) + "\n").encode()
    del files[WEIGHTS]
    problems = compared(addon_goldens() / case, files, update=update_golden)
    assert not problems, "\n".join(problems)


def test_every_golden_belongs_to_a_case():
    assert unused(addon_goldens(), set(CASES)) == []


FILES = {"a.json": b'{\n"r": 1\n}\n', "b.json": b"{}\n"}


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
        ({"a.json": FILES["a.json"]}, "case/b.json: golden of a file that is not written"),
        ({**FILES, "a.json": b'{\n"r": 2\n}\n'}, '-"r": 1\n+"r": 2\n'),
    ],
    ids=["missing", "unused", "different"],
)
def test_each_difference_is_told_and_nothing_is_written(folder, produced, said):
    (problem,) = compared(folder, produced)
    assert said in problem
    assert compared(folder, FILES) == []


def test_update_writes_and_is_not_green(folder):
    produced = {"a.json": b"new\n", "c.json": b"{}\n"}
    problems = compared(folder, produced, update=True)
    assert len(problems) == 3
    assert all("not green" in problem for problem in problems)
    assert compared(folder, produced) == []


def test_case_without_a_test_is_told(tmp_path):
    for name in ("known", "forgotten"):
        (tmp_path / name).mkdir()
    assert unused(tmp_path, {"known"}) == ["forgotten: golden of no case: remove it"]
    assert unused(tmp_path / "nowhere", {"known"}) == []
