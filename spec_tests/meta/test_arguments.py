# SPDX-License-Identifier: Apache-2.0
"""Arguments that the reference refuses by name, beyond what a clause asks for."""

from __future__ import annotations

import pytest
import torch

import addons
from addons.plain_json import json_safe
from spec_tests.builders import hf
from spec_tests.implementations.base import TrainerPeftConfig
from spec_tests.strategies.trees import Leaf, TreeSpec


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "5GB"])
def test_size_of_files_is_a_whole_number_from_one(tmp_path, size):
    with pytest.raises((TypeError, ValueError), match="max_shard_bytes"):
        addons.save_consolidated(hf.llama(), tmp_path / "out", max_shard_bytes=size)
    assert list(tmp_path.iterdir()) == []


def test_destination_has_a_name():
    with pytest.raises(OSError, match="directory with a name"):
        addons.save_adapter(TreeSpec((Leaf("q"),)).build(), "/", TrainerPeftConfig(dim=4, alpha=8))


def test_settings_are_a_dict(tmp_path):
    class Config(TrainerPeftConfig):
        def to_dict(self):
            return ["dim", 4]

    with pytest.raises(TypeError, match=r"to_dict\(\) must give a dict, got list"):
        addons.save_adapter(TreeSpec((Leaf("q"),)).build(), tmp_path / "out", Config(dim=4, alpha=8))


def test_device_is_its_name_and_a_class_is_refused():
    assert json_safe({"device": torch.device("cpu")}, "config") == {"device": "cpu"}
    with pytest.raises(TypeError, match=r"config\['kind'\]"):
        json_safe({"kind": Leaf}, "config")
