# SPDX-License-Identifier: Apache-2.0
"""How the reference plans an adapter, where no clause asks for it."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import addons
from addons import seed_helpers
from addons.experts import Form
from addons.model_state import AdapterContent
from addons.modules import model_parts
from addons.targets import adapter_of, united
from spec_tests.harness.export import error_of
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.implementations.base import TrainerPeftConfig
from spec_tests.implementations.package import from_package
from spec_tests.strategies.experts import MoESpec, moe_model
from spec_tests.strategies.trees import Leaf, TreeSpec

CONFIG = TrainerPeftConfig(dim=4, alpha=8)


class Asked:
    """Keeps what it was asked to convert."""

    def __init__(self):
        self.tensors = set()

    def to_hf(self, state_dict, **_options):
        self.tensors |= {(name, tensor.device.type, tuple(tensor.shape)) for name, tensor in state_dict.items()}
        return state_dict


def test_adapter_of_the_model_is_asked_for_names_with_tensors_that_take_no_memory():
    leaves = (Leaf("layers.0.q"), Leaf("layers.0.k", "none"))
    model = TreeSpec(leaves, architecture="LlamaForSequenceClassification").build()
    model.score, model.state_dict_adapter = nn.Linear(4, 2, bias=False), Asked()
    addons._get_hf_peft_config(CONFIG, addons.ModelState(model, is_peft=True))
    shapes = {"layers.0.q.lora_A.weight": (4, 8), "layers.0.q.lora_B.weight": (16, 4), "score.weight": (2, 4)}
    # Of the other weights the names alone matter; three dimensions, as experts have them, and none of the experts.
    modules = ("layers", "layers.0", "layers.0.q", "layers.0.k", "score")
    names = {f"{module}.weight": (0, 0, 0) for module in modules}
    expected = {(f"base_model.model.{name}", "meta", shape) for name, shape in (*shapes.items(), *names.items())}
    assert model.state_dict_adapter.tensors == expected


def test_module_whose_name_begins_like_lora_is_one_beside_an_adapter_of_the_models_own():
    """It is LoRA by its tensors: by its name it would be missed, and a target that ends alike would match it."""
    model = TreeSpec((Leaf("layers.0.q"), Leaf("tower.lora_like.q", "none"))).build()
    model.state_dict_adapter = Asked()
    assert "tower.lora_like.q" in adapter_of(AdapterContent.of(model_parts([model])), Form.FUSED).modules


def test_helpers_list_the_targets_of_the_form_they_are_asked_for():
    spec = MoESpec(layers=(0,))
    model = moe_model(from_package(addons, "bundled"), spec)
    listed = [
        (seed_helpers._extract_target_modules(model, form), seed_helpers._extract_target_parameters(model, form))
        for form in (False, True)
    ]
    fused = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    assert listed == [([], fused), (spec.expected_modules(), [])]


def targets_of_two_models(rank, world):
    """Of two models, each in two stages; then the stages of the second differ."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    group, model = groups[rank // 2], TreeSpec((Leaf(f"layers.{rank}.q"), Leaf("shared.q"))).build()
    own = [f"layers.{one}.q" for one in dist.get_process_group_ranks(group)]
    assert seed_helpers._extract_target_modules(model, pp_group=group) == [*own, "shared.q"]
    if rank == world - 1:
        del model.shared.q.scale
    return str(error_of(lambda: seed_helpers._extract_target_parameters(model, pp_group=group)))


def test_helpers_ask_the_stages_of_their_own_model_alone():
    said = values(run_ranks(4, targets_of_two_models))
    assert said[:2] == ["None", "None"]
    assert all("'shared.q' twice" in one for one in said[2:])


def test_stages_of_which_one_alone_knows_the_scale_are_refused_by_name():
    models = [TreeSpec((Leaf("shared.q"),)).build() for _ in range(2)]
    del models[1].shared.q.scale
    plans = [adapter_of(AdapterContent.of(model_parts([model])), Form.FUSED) for model in models]
    with pytest.raises(ValueError, match=r"'shared\.q' twice: .* in two stages that differ"):
        united(plans)


def test_dash_in_a_name_stays_as_it_is_in_a_pattern(tmp_path):
    model = TreeSpec((Leaf("tower-1.q"),), rank=2).build()
    addons.save_adapter(model, tmp_path / "out", CONFIG)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["rank_pattern"] == {r"tower-1\.q": 2}


def test_buffer_of_a_head_that_is_called_as_lora_is_no_lora(tmp_path):
    model = TreeSpec((Leaf("layers.0.q"),), architecture="LlamaForSequenceClassification").build()
    model.score = nn.Linear(4, 2, bias=False)
    model.score.lora_A = nn.Module()
    model.score.lora_A.register_buffer("weight", torch.ones(1))
    addons.save_adapter(model, tmp_path / "out", CONFIG)
    # PEFT reads it back with the rest of the head.
    assert "base_model.model.score.lora_A.weight" in load_file(tmp_path / "out" / "adapter_model.safetensors")


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
@pytest.mark.parametrize("layer", [nn.Linear(8, 8), Conv1D(8, 8)], ids=["linear", "turned"])
def test_shard_of_a_trainers_own_layer_is_refused(layer, part):
    held = {"lora_A": (8, 2), "lora_B": (2, 8), part: (4, 2) if part == "lora_A" else (2, 4)}
    for name, (inputs, outputs) in held.items():
        setattr(layer, name, nn.Linear(inputs, outputs, bias=False))
    message = r"LoRA of 'layer' must be whole, got matrices for .* of its \(8, 8\) inputs"
    with pytest.raises(ValueError, match=message):
        AdapterContent.of(model_parts([nn.ModuleDict({"layer": layer})]))


class NamedConv1D(nn.Linear):
    """A layer that holds its weight [out, in], whatever it is called."""


NamedConv1D.__name__ = NamedConv1D.__qualname__ = "Conv1D"


def test_weights_count_as_turned_where_the_layer_is_transformers_own():
    def stage(**layers):
        for layer in layers.values():
            layer.lora_A, layer.lora_B = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
        model = nn.ModuleDict(layers)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        return adapter_of(AdapterContent.of(model_parts([model])), Form.FUSED)

    turned, plain, none = stage(a=Conv1D(4, 4)), stage(b=nn.Linear(4, 4)), stage()
    both, named = stage(a=Conv1D(4, 4), b=nn.Linear(4, 4)), stage(a=NamedConv1D(4, 4))
    assert [one.turned for one in united([none, turned]).targets] == [True]
    assert [one.turned for one in united([turned, plain]).targets] == [True, False]
    assert [one.turned for one in both.targets] == [True, False]
    assert [one.turned for one in named.targets] == [False]


@pytest.mark.parametrize("layers", [{"a": Conv1D}, {"a": Conv1D, "b": nn.Linear}, {"b": nn.Linear}], ids="_".join)
@pytest.mark.parametrize("adapter", [None, Asked()], ids=["no adapter", "an adapter of its own"])
def test_config_says_fan_in_fan_out_where_all_weights_are_turned(tmp_path, layers, adapter):
    model = nn.ModuleDict({name: kind(4, 4).requires_grad_(False) for name, kind in layers.items()})
    for layer in model.values():
        layer.lora_A, layer.lora_B = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    model.state_dict_adapter = adapter
    addons.save_adapter(model, tmp_path / "out", CONFIG)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config.get("fan_in_fan_out", False) is (nn.Linear not in layers.values())
