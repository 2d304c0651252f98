# SPDX-License-Identifier: Apache-2.0
"""The rows of the version matrix: which forms are read on them, and that nothing is read or required on none."""

from __future__ import annotations

import configparser
import re

import pytest
import yaml

from spec_tests.consumers.forms import FUSED_LORA, FUSED_WEIGHTS, LORA_ONE_BY_ONE, READERS, SEQ_TO_SEQ_LORA, is_read
from spec_tests.harness.clauses import load_clauses
from spec_tests.harness.paths import package_dir

ROOT = package_dir().parent
in_a_checkout = pytest.mark.skipif(not (ROOT / "tox.ini").exists(), reason="an installed copy has no tox.ini")
ROWS = {
    "tf457": {"transformers": "4.57.6", "peft": "0.18.1"},
    "tf500": {"transformers": "5.0.0", "peft": "0.18.1"},
    "tf518": {"transformers": "5.18.0", "peft": "0.20.0"},
    "tf523": {"transformers": "5.23.0", "peft": "0.21.2"},
    "tf524": {"transformers": "5.24.0", "peft": "0.21.2"},
}


@pytest.mark.parametrize(
    ("row", "forms"),
    [
        ("tf457", {LORA_ONE_BY_ONE, SEQ_TO_SEQ_LORA}),
        ("tf500", {FUSED_WEIGHTS, FUSED_LORA, SEQ_TO_SEQ_LORA}),
        ("tf518", {FUSED_WEIGHTS, FUSED_LORA, LORA_ONE_BY_ONE}),
        ("tf523", set(READERS)),
        ("tf524", set(READERS)),
    ],
)
def test_forms_that_a_row_reads(row, forms):
    assert {form for form in READERS if is_read(form, ROWS[row])} == forms


def test_every_form_is_read_on_some_row():
    assert [form for form in READERS if not any(is_read(form, row) for row in ROWS.values())] == []


def test_every_clause_applies_to_some_row():
    clauses = load_clauses().values()
    rows = ROWS.values()
    assert [
        clause.id
        for clause in clauses
        if not any(all(one.met_by(row.get(one.package)) for one in clause.applies) for row in rows)
    ] == []


def tox():
    found = configparser.ConfigParser(interpolation=None)
    found.read(ROOT / "tox.ini", encoding="utf-8")
    return found


@in_a_checkout
def test_rows_are_those_of_tox():
    (section,) = (name for name in tox().sections() if name.startswith("testenv:tf"))
    pins: dict = {}
    for row, package, version in re.findall(r"(tf\d+): (\w+)==(\S+)", tox()[section]["deps"]):
        pins.setdefault(row, {})[package] = version
    assert pins == ROWS
    assert {f"tf{number}" for number in re.findall(r"\d+", section)} == ROWS.keys()


@in_a_checkout
def test_ci_runs_every_row():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    named = [one["row"] for one in jobs["rows"]["strategy"]["matrix"]["include"]]
    assert sorted(named) == sorted([*ROWS, "lowest", "latest"])
    assert {f"testenv:{name}" for name in ("lowest", "latest")} <= set(tox().sections())
