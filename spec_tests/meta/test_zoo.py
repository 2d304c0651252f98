# SPDX-License-Identifier: Apache-2.0
"""The zoo has every family of transformers, or says why not; and its judges tell right from wrong."""

from __future__ import annotations

import json

import pytest
import torch

import addons
from spec_tests.implementations.package import from_package
from spec_tests.mutants import registry
from spec_tests.zoo import adapters, record, wholes
from spec_tests.zoo.cases import CASES
from spec_tests.zoo.overrides import CANNOT
from spec_tests.zoo.refusals import REFUSALS, reason_of
from spec_tests.zoo.registry import architectures, families
from spec_tests.zoo.sample import ADAPTERS, WHOLES
from spec_tests.zoo.verdict import Verdict, close, distance

REFERENCE = from_package(addons, "reference")


@pytest.fixture(scope="module")
def recorded():
    """The recorded walk of the reference, on the newest row of the version matrix."""
    return json.loads(record.path_of("reference").read_text(encoding="utf-8"))


def test_every_family_is_in_the_zoo_or_has_a_reason(recorded):
    assert sorted([*recorded["families"], *recorded["not built"]]) == families()
    assert recorded["not built"] == CANNOT
    assert len(recorded["families"]) >= 150


def test_what_is_recorded_is_right(recorded):
    assert recorded["cases"] == list(CASES)
    assert {letter for letters in recorded["families"].values() for letter in letters} <= set("EPR-")
    assert all(len(letters) == len(CASES) for letters in recorded["families"].values())


def test_sample_is_of_cases_that_are_equal_or_as_the_peer(recorded):
    letters = {(f, case): recorded["families"][f][list(CASES).index(case)] for f, case in (*ADAPTERS, *WHOLES)}
    assert {one: letter for one, letter in letters.items() if letter not in "EP"} == {}


def test_families_name_their_classes():
    assert architectures("llama")["CAUSAL_LM"] == "LlamaForCausalLM"
    assert architectures("no such family") == {}


@pytest.mark.parametrize(
    ("mutant", "family", "case"),
    [
        ("leaves_resized_embeddings_behind", "llama", "resized"),
        ("names_tasks_that_cannot_be_called", "clip", "all-linear"),
        ("lists_bare_parameters_as_modules", "mixtral", "all-linear"),
        ("saves_under_inner_names", "vit", "float32"),
    ],
)
def test_judges_tell_right_from_wrong(tmp_path, mutant, family, case):
    broken = registry.implementation(registry.mutants()[mutant])
    for name, impl, outcome in (("right", REFERENCE, "equal"), ("broken", broken, "wrong")):
        (tmp_path / name).mkdir()
        assert CASES[case](impl, family, tmp_path / name).outcome == outcome


def test_what_does_not_exist_is_not_applicable(tmp_path):
    assert adapters.judge(REFERENCE, "vit", adapters.MODES["resized"], tmp_path).outcome == "not applicable"
    assert wholes.judge(REFERENCE, "no such family", "float32", tmp_path).outcome == "not applicable"


@pytest.mark.parametrize(("one", "other", "near"), [(1.0, 1.0, True), (1.0, 1.1, False), (1e9, 1e9 + 64, True)])
def test_distance_is_over_the_size_of_the_numbers(one, other, near):
    assert close(distance(torch.tensor([one]), torch.tensor([other]))) is near


def test_another_shape_is_infinitely_far():
    assert not close(distance(torch.ones(2), torch.ones(3)))


def test_what_has_become_worse_is_said(recorded):
    family = next(f for f, letters in recorded["families"].items() if letters[0] == "E")
    case = recorded["cases"][0]
    assert record.compared([Verdict(family, case, "equal")], {}, "reference") == []
    (line,) = record.compared([Verdict(family, case, "as the peer")], {}, "reference")
    assert line.startswith(f"{family}, {case}: was equal")
    (line,) = record.compared([], {family: "gone"}, "reference")
    assert "not built any more" in line
    name, most = next((name, one.most) for name, one in REFUSALS.items())
    refused = Verdict(family, recorded["cases"][5], "refused", "DoRA magnitudes", peer_can=True)
    assert reason_of(refused) == name
    assert any("at most" in line for line in record.compared([refused] * (most + 1), {}, "reference"))
