# SPDX-License-Identifier: Apache-2.0
"""Which parameters the reference takes for LoRA, and what it says of those that it refuses."""

from __future__ import annotations

import peft
import pytest
from torch import nn

import addons
from spec_tests.builders import hf
from spec_tests.harness.export import Adapter
from spec_tests.implementations.base import TrainerPeftConfig
from spec_tests.strategies.experts import MoESpec
from spec_tests.strategies.trees import Leaf, TreeSpec

CONFIG = TrainerPeftConfig(dim=4, alpha=8)


def tree():
    return TreeSpec((Leaf("layers.0.q"), Leaf("layers.1.q"))).build()


def refused(model, directory, match):
    with pytest.raises(ValueError, match=match):
        addons.save_adapter(model, directory / "out", CONFIG)
    assert list(directory.iterdir()) == []


def linear():
    return TreeSpec((Leaf("q"),)).build().q


def experts():
    return MoESpec().build().get_submodule(MoESpec().paths()[0])


@pytest.mark.parametrize("root", [linear, experts])
def test_lora_on_the_root_is_refused_for_where_it_is(tmp_path, root):
    refused(root(), tmp_path, "a module with a name that PEFT can match, got 'lora_.*' on the root module")


@pytest.mark.parametrize("missing", ["lora_A", "lora_B"])
def test_half_that_a_pair_lacks_is_named(tmp_path, missing):
    model = tree()
    delattr(model.get_submodule("layers.1.q"), missing)
    refused(model, tmp_path, rf"'layers\.1\.q' must have both A and B, got no '{missing}\.weight'")


def test_scale_that_is_a_truth_value_is_no_number(tmp_path):
    model = tree()
    model.get_submodule("layers.1.q").scale = True
    refused(model, tmp_path, r"'layers\.1\.q' must be one finite number, got True")


def test_module_with_a_variant_of_lora_is_named(tmp_path):
    settings = {"target_modules": ["q_proj"], "alora_invocation_tokens": [7], "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(hf.llama(), peft.LoraConfig(r=4, lora_alpha=8, **settings))
    refused(model, tmp_path, r"'model\.layers\.0\.self_attn\.q_proj' must be plain or DoRA, got ALora")


def test_names_of_peft_count_on_a_module_that_has_nothing_else_of_it(tmp_path):
    model, renamed = tree(), tree()
    for layer in (renamed.get_submodule("layers.0.q"), renamed.get_submodule("layers.1.q")):
        layer.lora_A, layer.lora_B = nn.ModuleDict({"mine": layer.lora_A}), nn.ModuleDict({"mine": layer.lora_B})
    for one, name in ((model, "own"), (renamed, "renamed")):
        addons.save_adapter(one, tmp_path / name, CONFIG)
    own, other = Adapter(tmp_path / "own"), Adapter(tmp_path / "renamed")
    assert other.config == own.config
    assert other.tensors.keys() == own.tensors.keys()
    assert all(tensor.equal(own.tensors[key]) for key, tensor in other.tensors.items())


def injected():
    return peft.get_peft_model(hf.llama(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]))


def test_module_beside_the_model_that_peft_trains_is_named(tmp_path):
    model = injected()
    model.base_model.head = nn.Linear(4, 4)
    refused(model, tmp_path, "first 'head\\.")


def test_kind_of_tuner_may_be_plain_text(tmp_path):
    model = injected()
    model.peft_config["default"].peft_type = "LORA"
    addons.save_adapter(model, tmp_path / "out", CONFIG)
    assert Adapter(tmp_path / "out").modules == [f"model.layers.{number}.self_attn.q_proj" for number in (0, 1)]


def test_tuner_is_named_and_not_what_it_keeps_its_tensors_in(tmp_path):
    model = tree()
    model.other = hf.llama()
    settings = {"token_indices": [1], "target_modules": ["embed_tokens"]}
    peft.inject_adapter_in_model(peft.TrainableTokensConfig(**settings), model.other)
    refused(model, tmp_path, "got a layer of trainable_tokens")
