# SPDX-License-Identifier: Apache-2.0
"""Plain forms of objects, and layouts of text, that no clause asks for."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from addons.plain_json import json_safe, json_text


@dataclass
class Quantisation:
    """Settings with a form of their own, as transformers' are; the declared field is not all of it."""

    declared: int

    def to_dict(self):
        return {"bits": 4, "declared": self.declared}


@dataclass
class Outer:
    """A dataclass that holds such settings."""

    inner: object


def test_settings_inside_a_dataclass_keep_their_own_form():
    assert json_safe(Outer(Quantisation(3)), "config") == {"inner": {"bits": 4, "declared": 3}}


def test_keys_that_are_one_as_text_are_refused_by_name():
    with pytest.raises(TypeError, match=r"id2label.*differ as text"):
        json_safe({"id2label": {0: "negative", "0": "bad"}}, "config")


@pytest.mark.parametrize(("value", "place"), [([1, 2j], r"\[1\]"), ({2j}, r"\[2j\]"), ({"a": (2j,)}, r"\['a'\]\[0\]")])
def test_value_inside_a_collection_is_refused_by_its_place(value, place):
    with pytest.raises(TypeError, match=rf"^config\['x'\]{place} must be"):
        json_safe({"x": value}, "config")


@pytest.mark.parametrize(
    "value",
    [
        ["q_proj", "\ud800 \u00e9"],
        [[1, 2], ["a", "b"], []],
        [{"b": [1.5, None], "a": "x"}, {}],
        ["a", {"b": 1, "a": ["c", "d"]}],
    ],
    ids=["texts", "lists", "dicts", "texts and dicts"],
)
def test_text_of_a_list_is_laid_out_as_json_does(value):
    content = {"z": value, "a": tuple(value)}
    assert json_text(content) == json.dumps(content, indent=2, sort_keys=True) + "\n"
