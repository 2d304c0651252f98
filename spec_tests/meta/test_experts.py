# SPDX-License-Identifier: Apache-2.0
"""The bundled adapter of experts, where no released trainer's shape of it is asked for by a clause."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from addons import MoESplitExpertsStateDictMixin, Qwen3MoeStateDictAdapter, _is_qwen3_moe, save_adapter
from addons.experts import Form
from spec_tests.implementations.base import TrainerPeftConfig
from spec_tests.strategies.experts import MoESpec


class _NoGate(Qwen3MoeStateDictAdapter):
    @property
    def _is_gated_moe(self):
        return False


def test_base_weights_of_fused_experts_without_a_gate_have_their_own_name():
    weights = {f"mlp.experts.{name}": torch.zeros(2, 4, 6) for name in ("gate_and_up_projs", "down_projs")}
    assert sorted(_NoGate().to_hf(weights)) == ["mlp.experts.down_proj", "mlp.experts.up_proj"]
    assert sorted(Qwen3MoeStateDictAdapter().to_hf(weights)) == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]


def test_tensors_beside_base_weights_stay_as_they_are():
    named = {
        f"model.layers.0.mlp.experts.{name}": torch.rand(2, 4, 6)
        for name in ("gate_and_up_projs_scale", "down_projs.scale", "my.gate_and_up_projs.count")
    }
    weights = {
        f"model.layers.0.mlp.experts.{name}": torch.rand(2, 4, 6) for name in ("gate_and_up_projs", "down_projs")
    }
    alone = Qwen3MoeStateDictAdapter().to_hf(dict(weights))
    together = Qwen3MoeStateDictAdapter().to_hf({**weights, **named})
    assert together.keys() == alone.keys() | named.keys()
    assert all(together[name].equal(tensor) for name, tensor in {**alone, **named}.items())


def test_weights_of_experts_alone_are_split_and_only_where_each_gets_its_own():
    fused, grouped = Qwen3MoeStateDictAdapter(), MoESplitExpertsStateDictMixin()
    names = ("mlp.experts.down_projs", "mlp.gate.weight")
    assert [fused.splits(name, Form.PER_EXPERT) for name in names] == [True, False]
    assert [fused.splits(name, Form.FUSED) for name in names] == [False, False]
    assert [grouped.splits(name, Form.FUSED) for name in names] == [True, False]


def test_tensors_of_one_expert_can_be_written_as_they_are(tmp_path):
    native = {"mlp.experts.lora_down_A": torch.rand(2, 6, 3), "mlp.experts.lora_gate_and_up_B": torch.rand(2, 3, 12)}
    converted = Qwen3MoeStateDictAdapter().to_hf(native, v4_compatible=True)
    save_file(converted, tmp_path / "model.safetensors")  # which refuses rows that do not lie behind each other
    assert len(converted) == 2 * 3


def test_gate_and_up_of_one_output_are_not_taken_for_a_gate_alone():
    with pytest.raises(ValueError, match="shorter"):
        Qwen3MoeStateDictAdapter().to_hf({"mlp.experts.gate_and_up_projs": torch.zeros(2, 4, 1)}, v4_compatible=True)


def test_adapter_keeps_the_config_that_it_is_made_with():
    config = object()
    assert Qwen3MoeStateDictAdapter(config).config is config


def test_model_is_known_inside_what_does_not_pass_attributes_on():
    model = nn.Linear(2, 2)
    model.state_dict_adapter = Qwen3MoeStateDictAdapter()
    assert _is_qwen3_moe(nn.DataParallel(model))


class _OfATrainer(Qwen3MoeStateDictAdapter):
    """Has names of its own for layers, and knows one dtype."""

    def to_hf(self, state_dict, **options):
        if other := {tensor.dtype for tensor in state_dict.values()} - {torch.bfloat16}:
            raise TypeError(f"must be bfloat16, got {other}")
        return {name.replace("layers", "blocks"): one for name, one in super().to_hf(state_dict, **options).items()}


class _OfToHfAlone:
    """Says nothing of gates or of fused parameters, and derives from no class."""

    def to_hf(self, state_dict, **_options):
        return _OfATrainer().to_hf(state_dict, v4_compatible=True)


@pytest.mark.parametrize("adapter", [_OfATrainer, _OfToHfAlone])
def test_adapter_that_converts_in_its_own_way_is_asked_with_the_dtype_and_keeps_the_scale(tmp_path, adapter):
    spec = MoESpec(rank=4, dtype=torch.bfloat16)
    model = spec.build()
    model.state_dict_adapter = adapter()
    model.get_submodule(spec.paths()[1]).scale = 5.0
    save_adapter(model, tmp_path / "out", TrainerPeftConfig(dim=4, alpha=8))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    names = [name.replace("layers", "blocks") for name in spec.expected_modules()]
    if adapter is _OfATrainer:
        assert config["target_parameters"] == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        names = [
            f"model.blocks.{layer}.mlp.experts.{name}" for layer in (0, 1) for name in ("gate_up_proj", "down_proj")
        ]
    else:
        assert config["target_modules"] == names
    alphas = {
        name: alpha for name in names for key, alpha in config["alpha_pattern"].items() if re.fullmatch(key, name)
    }
    assert alphas == {name: 20 for name in names if "blocks.1" in name}


def test_meta_tensors_are_laid_out_as_those_with_values():
    """Names and shapes are asked on the meta device, through adapters that go on from this conversion."""
    native = {"mlp.experts.lora_down_B": torch.rand(2, 3, 6), "mlp.experts.gate_and_up_projs": torch.rand(2, 4, 6)}
    adapter = Qwen3MoeStateDictAdapter()
    real = adapter.to_hf(native, v4_compatible=True)
    meta = adapter.to_hf({name: tensor.to("meta") for name, tensor in native.items()}, v4_compatible=True)
    assert {key: t.stride() for key, t in meta.items()} == {key: t.stride() for key, t in real.items()}
