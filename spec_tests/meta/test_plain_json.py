# SPDX-License-Identifier: Apache-2.0
"""Plain forms of objects that no clause asks for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from addons.plain_json import json_safe


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
