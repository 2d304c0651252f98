"""TGT: target modules and parameters of mixtures of experts (spec/targets.md)."""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.injected import config_for
from spec_tests.builders.lora import LoRALinear
from spec_tests.builders.mergeable import injected
from spec_tests.builders.randomness import generator
from spec_tests.builders.wrappers import wrap
from spec_tests.harness.export import save_adapter, save_metadata
from spec_tests.strategies.experts import MoESpec, moe_model, moes, without_lora


@pytest.mark.clause("TGT-004")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("kind", ["compile", "checkpoint"])
@pytest.mark.parametrize("at", ["model.layers.0", "model.layers.0.mlp", "model.layers.0.mlp.experts"])
def test_wrapped_experts_have_clean_names(impl, fresh_dir, kind, at):
    spec = MoESpec(layers=(0, 3), rank=4)
    model = wrap(moe_model(impl, spec), at, kind)
    written = save_adapter(impl, model, fresh_dir(), v4_compatible=True)
    assert written.config["target_modules"] == spec.expected_modules() == written.modules


@pytest.mark.clause("TGT-007", "ADP-010")
@pytest.mark.needs("qwen3_moe_adapter")
@given(spec=moes())
def test_experts_are_listed_one_by_one_when_v4_compatible(impl, fresh_dir, spec):
    spec = replace(spec, rank=4)
    written = save_adapter(impl, moe_model(impl, spec), fresh_dir(), v4_compatible=True)
    assert written.config["target_modules"] == spec.expected_modules() == written.modules
    assert "target_parameters" not in written.config


@pytest.mark.clause("TGT-007")
@pytest.mark.needs("qwen3_moe_adapter", "paramwrapper_layout")
def test_experts_are_listed_one_by_one_whatever_fused_form_is_asked_for(impl, fresh_dir):
    spec = MoESpec(rank=4)
    settings = {"v4_compatible": True, "legacy_paramwrapper_layout": True}
    written = save_adapter(impl, moe_model(impl, spec), fresh_dir(), **settings)
    assert written.config["target_modules"] == spec.expected_modules() == written.modules
    assert "target_parameters" not in written.config


@pytest.mark.clause("TGT-007")
@pytest.mark.needs("moe_adapter")
@given(spec=moes(), v4_compatible=st.booleans())
def test_experts_without_declared_fused_parameters_are_listed_one_by_one(impl, fresh_dir, spec, v4_compatible):
    spec = replace(spec, rank=4)
    model = moe_model(impl, spec, "moe")
    written = save_adapter(impl, model, fresh_dir(), v4_compatible=v4_compatible)
    assert written.config["target_modules"] == spec.expected_modules() == written.modules
    assert "target_parameters" not in written.config


@pytest.mark.clause("TGT-006")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("v4_compatible", [True, False])
def test_order_of_the_matrices_of_experts_does_not_matter(impl, fresh_dir, v4_compatible):
    spec = MoESpec(rank=4)
    usual, turned = moe_model(impl, spec), moe_model(impl, spec)
    for path in spec.paths():
        experts = turned.get_submodule(path)
        matrices = [(name, one) for name, one in experts.named_parameters() if "lora_" in name]
        without_lora(experts)
        for name, one in reversed(matrices):
            experts.register_parameter(name, one)
    expected, written = (save_adapter(impl, m, fresh_dir(), v4_compatible=v4_compatible) for m in (usual, turned))
    assert written.config == expected.config
    assert written.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(tensor, expected.tensors[key]) for key, tensor in written.tensors.items())


@pytest.mark.clause("TGT-009")
def test_qwen3_moe_is_known_by_its_adapter(impl):
    is_qwen3_moe = impl.helpers["_is_qwen3_moe"]
    spec = MoESpec()
    assert is_qwen3_moe(moe_model(impl, spec)) is True
    assert is_qwen3_moe(moe_model(impl, spec, "moe")) is False
    assert is_qwen3_moe(spec.build()) is False


@pytest.mark.clause("TGT-010", "ADP-005")
@given(spec=moes())
def test_qwen3_moe_experts_are_target_parameters(impl, fresh_dir, spec):
    config = save_metadata(impl, moe_model(impl, replace(spec, rank=4)), fresh_dir()).config
    assert sorted(config["target_parameters"]) == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    assert config["target_modules"] == []


@pytest.mark.clause("TGT-010")
def test_dense_modules_beside_fused_experts_are_listed(impl, fresh_dir):
    spec = TRAINED["qwen3_moe_fused"]
    config = save_metadata(impl, spec.trained(impl.adapters), fresh_dir(), spec.peft_config(impl.peft_config)).config
    attention = ("k_proj", "o_proj", "q_proj", "v_proj")
    assert config["target_modules"] == [f"model.layers.{n}.self_attn.{name}" for n in (0, 1) for name in attention]


@pytest.mark.clause("TGT-013", "EXP-006")
@given(spec=moes(gated=st.just(False)), v4_compatible=st.booleans())
def test_experts_without_a_gate_list_no_gate(impl, fresh_dir, spec, v4_compatible):
    spec = replace(spec, rank=4)
    written = save_adapter(impl, moe_model(impl, spec, "moe"), fresh_dir(), v4_compatible=v4_compatible)
    assert written.config["target_modules"] == spec.expected_modules() == written.modules


@pytest.mark.clause("TGT-019")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("v4_compatible", [True, False])
@pytest.mark.parametrize("target", ["gate_proj", "up_proj", "down_proj"])
def test_dense_modules_that_peft_takes_for_experts_are_parameters(impl, fresh_dir, target, v4_compatible):
    spec = replace(TRAINED["qwen3_moe_fused"], dense=(f"model.layers.0.mlp.{target}", "o_proj"))
    spec = replace(spec, base_settings={"dense_layers": (0,)})
    model, config = spec.trained(impl.adapters), spec.peft_config(impl.peft_config)
    written = save_adapter(impl, model, fresh_dir(), config, v4_compatible=v4_compatible)
    assert f"model.layers.0.mlp.{target}.weight" in written.config["target_parameters"]
    assert f"model.layers.0.mlp.{target}" not in written.config["target_modules"]
    assert f"model.layers.0.mlp.{target}" in written.modules


@pytest.mark.clause("TGT-019")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("name", ["shared_experts.gate_proj", "shared_expert.down_proj", "my_experts.up_proj"])
def test_dense_modules_of_shared_experts_are_parameters(impl, fresh_dir, name):
    model, path = moe_model(impl, MoESpec(rank=4)), f"model.layers.0.mlp.{name}"
    above, _, last = name.rpartition(".")
    shared = nn.Module()
    shared.add_module(last, LoRALinear(nn.Linear(16, 3, bias=False).requires_grad_(False), 4, 8, source=generator(0)))
    model.model.layers["0"].mlp.add_module(above, shared)
    written = save_adapter(impl, model, fresh_dir())
    assert f"{path}.weight" in written.config["target_parameters"]
    assert path not in written.config["target_modules"]


def turned_beside_experts(width):
    torch.manual_seed(0)
    model, mlp = nn.Module(), nn.Module()
    mlp.up_proj, mlp.experts = Conv1D(width, 8), nn.ModuleList([nn.Linear(8, width)])
    model.mlp, model.forward = mlp, lambda x: mlp.up_proj(x) + mlp.experts[0](x)
    return model


@pytest.mark.clause("TGT-019")
@pytest.mark.needs("peft_injected")
@pytest.mark.parametrize("beside", [[], ["experts.0"]], ids=["alone", "beside another"])
@pytest.mark.parametrize("width", [8, 12])
def test_layer_that_holds_its_weights_turned_comes_back(impl, fresh_dir, width, beside):
    """As a parameter PEFT reads its weight as [out, in]: a square one comes back wrong, and without a warning."""
    model, x = injected(lambda: turned_beside_experts(width), ["up_proj", *beside]), torch.ones(2, 8)
    written = save_adapter(impl, model, fresh_dir(), config_for(impl, model.peft_config["default"]))
    again = peft.PeftModel.from_pretrained(turned_beside_experts(width), str(written.directory)).eval()
    torch.testing.assert_close(again(x), model(x))


@pytest.mark.clause("TGT-019")
@pytest.mark.needs("qwen3_moe_adapter")
def test_router_with_lora_is_a_parameter(impl, fresh_dir):
    model = moe_model(impl, MoESpec(rank=4))
    model.model.layers["0"].mlp.gate = LoRALinear(
        nn.Linear(16, 3, bias=False).requires_grad_(False), 4, 8, source=generator(0)
    )
    written = save_adapter(impl, model, fresh_dir())
    assert "model.layers.0.mlp.gate.weight" in written.config["target_parameters"]
    assert "model.layers.0.mlp.gate" not in written.config["target_modules"]


@pytest.mark.clause("TGT-020")
@given(spec=moes(), plain=st.sets(st.integers(20, 22), min_size=1))
@example(spec=MoESpec(layers=(0,)), plain={20})
def test_experts_of_some_layers_are_listed_in_full(impl, fresh_dir, spec, plain):
    spec = replace(spec, rank=4)
    model = moe_model(impl, replace(spec, layers=(*spec.layers, *plain)))
    for layer in plain:
        without_lora(model.get_submodule(f"model.layers.{layer}.mlp.experts"))
    config = save_adapter(impl, model, fresh_dir()).config
    expected = sorted(f"{path}.{name}" for path in spec.paths() for name in ("gate_up_proj", "down_proj"))
    assert sorted(config["target_parameters"]) == expected


@pytest.mark.clause("TGT-020")
@pytest.mark.needs("qwen3_moe_adapter", "model_parts")
@pytest.mark.parametrize("plain", [0, 1])
def test_experts_of_some_parts_are_listed_in_full(impl, fresh_dir, plain):
    specs = [replace(MoESpec(rank=4), layers=(number,)) for number in range(2)]
    parts = [moe_model(impl, spec) for spec in specs]
    without_lora(parts[plain].get_submodule(specs[plain].paths()[0]))
    config = save_adapter(impl, parts, fresh_dir()).config
    (path,) = specs[1 - plain].paths()
    assert sorted(config["target_parameters"]) == [f"{path}.down_proj", f"{path}.gate_up_proj"]


@pytest.mark.clause("TGT-020", "EXP-005")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("left_out", ["gate_and_up", "down"])
@pytest.mark.parametrize("layer", [0, 1])
def test_layers_that_train_different_projections_are_each_as_they_are(impl, fresh_dir, layer, left_out):
    spec = MoESpec(rank=4)
    model = moe_model(impl, spec)
    one, both = f"model.layers.{layer}.mlp.experts", f"model.layers.{1 - layer}.mlp.experts"
    without_lora(model.get_submodule(one), left_out)
    written = save_adapter(impl, model, fresh_dir())
    left = "down_proj" if left_out == "gate_and_up" else "gate_up_proj"
    expected = [f"{one}.{left}", f"{both}.down_proj", f"{both}.gate_up_proj"]
    assert sorted(written.config["target_parameters"]) == sorted(expected)
    # The second projection of one module is nested, and a first one never is.
    assert written.modules == sorted([one, both, f"{both}.base_layer"])


@pytest.mark.clause("TGT-020", "EXP-005")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("first", ["gate_and_up", "down"])
def test_layers_of_which_each_trains_another_projection_are_each_as_they_are(impl, fresh_dir, first):
    names = {"gate_and_up": "gate_up_proj", "down": "down_proj"}
    model = moe_model(impl, MoESpec(rank=4))
    paths = [f"model.layers.{layer}.mlp.experts" for layer in range(2)]
    (second,) = names.keys() - {first}
    for path, left_out in zip(paths, (second, first), strict=True):
        without_lora(model.get_submodule(path), left_out)
    written = save_adapter(impl, model, fresh_dir())
    expected = [f"{paths[0]}.{names[first]}", f"{paths[1]}.{names[second]}"]
    assert sorted(written.config["target_parameters"]) == expected
    assert written.modules == paths


@pytest.mark.clause("TGT-023")
@pytest.mark.parametrize("v4_compatible", [True, False])
def test_experts_without_lora_are_not_listed(impl, fresh_dir, v4_compatible):
    spec = TRAINED["qwen3_moe_fused"]
    model = spec.trained(impl.adapters)
    for module in [module for module in model.modules() if hasattr(module, "lora_down_A")]:
        without_lora(module)
    config = spec.peft_config(impl.peft_config)
    written = save_adapter(impl, model, fresh_dir(), config, v4_compatible=v4_compatible)
    assert "target_parameters" not in written.config
    assert written.config["target_modules"] == written.modules
    assert {name.split(".")[3] for name in written.modules} == {"self_attn"}
