# SPDX-License-Identifier: Apache-2.0
"""What the reference writes into the two configs of an adapter where no clause asks for it."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file

import addons
from spec_tests.implementations.base import TrainerPeftConfig
from spec_tests.strategies.trees import Leaf, TreeSpec


class Plain:
    """A PEFT config with these settings and no other."""

    def __init__(self, **settings):
        vars(self).update(settings)

    def to_dict(self):
        return dict(vars(self))


def saved(directory, model, config, name="adapter_config.json"):
    addons.save_adapter(model, directory / "out", config)
    return json.loads((directory / "out" / name).read_text(encoding="utf-8"))


def test_config_that_says_rank_and_alpha_alone_is_enough(tmp_path):
    config = saved(tmp_path, TreeSpec((Leaf("q"),)).build(), Plain(dim=4, alpha=8))
    assert (config["r"], config["lora_alpha"], config["use_dora"]) == (4, 8, False)
    assert "fan_in_fan_out" not in config


@pytest.mark.parametrize(("said", "lacks"), [({"alpha": 8}, "dim"), ({"dim": 4}, "alpha")])
def test_setting_that_a_config_lacks_is_named_by_the_helper_as_trainers_call_it(said, lacks):
    state = addons.ModelState(TreeSpec((Leaf("q"),)).build(), is_peft=True)
    with pytest.raises(TypeError, match=rf"peft_config\.{lacks} must be a number of the kind \w+, got None"):
        addons._get_hf_peft_config(Plain(**said), state)


def test_rank_and_alpha_under_the_names_of_peft_are_stored_once(tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q"])
    stored = saved(tmp_path, TreeSpec((Leaf("q"),)).build(), config, "automodel_peft_config.json")
    assert stored == {**stored, "target_modules": ["q"], "use_rslora": False}
    assert not stored.keys() & {"r", "lora_alpha"}


def test_scale_of_single_precision_is_no_scale_of_its_own(tmp_path):
    model = TreeSpec((Leaf("q"),), rank=3, alpha=1).build()
    model.q.scale = torch.tensor(1 / 3)
    assert "alpha_pattern" not in saved(tmp_path, model, TrainerPeftConfig(dim=3, alpha=1))


def test_one_name_that_ends_another_is_told_where_both_have_the_same_rank_and_alpha(tmp_path):
    model = TreeSpec((Leaf("q"), Leaf("b.q")), rank=8, alpha=16).build()
    config = saved(tmp_path, model, TrainerPeftConfig(dim=4, alpha=8))
    assert config["rank_pattern"] == {"q": 8, r"b\.q": 8}
    assert config["alpha_pattern"] == {"q": 16, r"b\.q": 16}


@pytest.mark.parametrize("form", [{}, {"v4_compatible": True}, {"legacy_paramwrapper_layout": True}], ids=str)
def test_lora_that_peft_put_on_a_bare_weight_without_experts_has_one_form(tmp_path, form):
    model, settings = torch.nn.Sequential(torch.nn.Linear(8, 6)), {"target_parameters": ["0.weight"]}
    live = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **settings))
    addons.save_adapter(live, tmp_path / "ours", live.peft_config["default"], **form)
    live.save_pretrained(str(tmp_path / "theirs"))
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(tensor.equal(theirs[key]) for key, tensor in ours.items())
