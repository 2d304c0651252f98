# SPDX-License-Identifier: Apache-2.0
"""What tests need of an implementation: said by marks, left out where it is not claimed, and closed otherwise."""

from __future__ import annotations

import pytest

from spec_tests.builders.catalogue import cases, tagged
from spec_tests.implementations.guard import Guard
from spec_tests.loading import load

NEEDY = """
@pytest.mark.clause('ALP-001')
@pytest.mark.needs('encoder_adapter')
def test_extra(): assert False
"""


def test_test_without_what_it_needs_is_left_out_and_counted(sample):
    sample.tests(extra=NEEDY)
    assert sample.run("--conformance").ret == 0
    assert sample.report["clauses"]["ALP-001"] | {"keyword": "", "level": ""} == {
        "keyword": "",
        "level": "",
        "outcome": "PASS",
        "executed": 1,
        "failed": 0,
        "unclaimed": 1,
    }


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_test_is_run_where_what_it_needs_is_claimed(sample, workers):
    sample.implementation(capabilities=("encoder_adapter",))
    sample.tests(extra=NEEDY)
    assert sample.run(workers, "--conformance").ret == 1
    assert sample.outcomes["ALP-001"] == "FAIL"


def test_clause_of_which_all_tests_are_left_out_is_not_claimed(sample):
    sample.tests(one="assert True")
    path = sample.directory / "test_sample.py"
    marked = path.read_text().replace("def test_one", "@pytest.mark.needs('encoder_adapter')\ndef test_one")
    path.write_text(marked)
    result = sample.run("--conformance")
    assert (result.ret, sample.outcomes["ALP-001"]) == (0, "NOT-CLAIMED")
    result.stdout.fnmatch_lines(["verdict: conformant; clauses not claimed: 2"])


PARTS = {
    "consolidated": lambda impl: impl.consolidated_addon(),
    "_config_exists": lambda impl: impl.helpers["_config_exists"](None, "config.json"),
    "encoder_adapter": lambda impl: impl.adapters["encoder"](),
    "save_adapter": lambda impl: impl.save_adapter(None, None, None),
    "save_consolidated": lambda impl: impl.save_consolidated(None, None),
}


@pytest.mark.parametrize("part", list(PARTS))
def test_part_is_closed_to_a_test_that_has_not_said_it_needs_it(part):
    guard = Guard()
    impl = guard.around(load("reference"))
    guard.expect({*PARTS} - {part})
    with pytest.raises(pytest.fail.Exception, match=part):
        PARTS[part](impl)


def test_parts_are_open_to_those_who_said_so_and_to_tests_of_no_clause():
    guard = Guard()
    impl = guard.around(load("reference"))
    for needs in ({"_config_exists"}, None):
        guard.expect(needs)
        assert PARTS["_config_exists"](impl) is False
    assert impl.claims == load("reference").claims


def test_undeclared_use_fails_in_a_run(sample):
    sample.tests(one="pytest.fail if True else None", extra="")
    path = sample.directory / "test_sample.py"
    text = path.read_text().replace("def test_one():", "def test_one(impl):\n    impl.adapters['encoder']")
    path.write_text(text)
    assert sample.run("--conformance").ret == 1
    assert sample.outcomes["ALP-001"] == "FAIL"


def test_kinds_need_the_adapter_they_are_built_with():
    needs = {param.id: [name for mark in param.marks for name in mark.args] for param in cases(tagged("usual"))}
    assert needs["llama"] == []
    assert needs["qwen3_moe_v4"] == ["qwen3_moe_adapter"]
