# SPDX-License-Identifier: Apache-2.0
"""Faults in what is listed of experts (spec/targets.md)."""

from __future__ import annotations

import re
from typing import Any

from spec_tests.mutants.editing import around
from spec_tests.mutants.editing_adapter import (
    change_config,
    change_names,
    fused_parameters,
    list_dense_as_modules,
)
from spec_tests.mutants.editing_saving import change_keywords
from spec_tests.mutants.registry import mutant


@mutant(kills=["TGT-007"], also=("ADP", "RANK"), source="NVIDIA-NeMo/Automodel#1755")
def lists_the_module_that_holds_the_experts(addons: Any) -> None:
    """Readers of single experts, such as vLLM, are told to find LoRA in `mlp.experts`, which is no projection."""
    change_names(addons, lambda name: re.sub(r"(\.experts)\.\d+\.\w+$", r"\1", name))


@mutant(kills=["TGT-007", "TGT-013"], also=("EXP",), source="a rule for Qwen3-MoE applied to every mixture of experts")
def fuses_the_experts_of_every_adapter(addons: Any) -> None:
    """Models whose Hugging Face form has one module per expert get fused tensors that fit nowhere."""
    fused = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    addons.MoESplitExpertsStateDictMixin._v5_peft_target_parameters = property(lambda _self: fused)


@mutant(kills=["TGT-009"], source="a test by name where there is one by type")
def knows_qwen3_moe_by_its_architecture(addons: Any) -> None:
    """A Qwen3-MoE under another adapter is treated as one that stores fused experts."""

    def broken(_original: Any, model: Any) -> bool:
        architectures = getattr(getattr(model, "config", None), "architectures", None) or []
        return any(name.startswith("Qwen3Moe") for name in architectures)

    around(addons, addons._is_qwen3_moe, broken)


@mutant(kills=["TGT-010"], also=("ADP", "RANK", "EXP"), source="adapters for PEFT before 0.17")
def lists_fused_parameters_as_modules(addons: Any) -> None:
    """PEFT finds no module `mlp.experts.gate_up_proj` and refuses the adapter."""

    def moved(config: dict[str, Any], _model: Any, _found: Any) -> None:
        config["target_modules"] = sorted(config["target_modules"] + config.pop("target_parameters", []))

    change_config(addons, moved)


@mutant(kills=["TGT-010", "ADP-010"], also=("ADP", "RANK", "EXP", "META"), source="NVIDIA-NeMo/Automodel#1532")
def is_v4_compatible_whatever_was_asked_for(addons: Any) -> None:
    """The config names single experts while the checkpointer writes fused tensors."""
    change_keywords(addons, lambda kwargs: {**kwargs, "v4_compatible": True})


@mutant(kills=["TGT-013", "EXP-006"], source="NVIDIA-NeMo/Automodel#3284")
def lists_a_gate_for_experts_without_one(addons: Any) -> None:
    """The config of a ReLU2 mixture names gate_proj modules that the model does not have."""

    def with_gate(name: str) -> list[str]:
        gate = re.sub(r"(\.experts\.\d+)\.up_proj$", r"\1.gate_proj", name)
        return [name, gate]

    change_names(addons, with_gate)


@mutant(kills=["TGT-019"], source="transformers 5 `convert_peft_config_for_transformers`, executed with PEFT 0.20")
def lists_dense_modules_that_peft_takes_for_experts(addons: Any) -> None:
    """A dense layer's gate_proj beside fused experts is listed as a module, and PEFT drops its LoRA."""
    list_dense_as_modules(addons)


@mutant(kills=["TGT-020"], source="target_parameters taken from the adapter's declaration")
def targets_the_experts_of_every_layer(addons: Any) -> None:
    """Layers whose experts were not trained get LoRA of their own from PEFT."""

    def short(config: dict[str, Any], model: Any, plan: Any) -> None:
        if "target_parameters" in config:
            declared, used = model.state_dict_adapter._v5_peft_target_parameters, fused_parameters(plan)
            config["target_parameters"] = [one for one in declared if any(name.endswith(one) for name in used)]

    change_config(addons, short)


@mutant(kills=["TGT-023"], also=("ADP", "LOAD"), source="NVIDIA-NeMo/Automodel 0.4 and 0.5")
def lists_experts_without_lora(addons: Any) -> None:
    """An adapter for attention alone makes PEFT add LoRA to every expert."""

    def change(config: dict[str, Any], model: Any, _found: Any) -> None:
        if fused := getattr(getattr(model, "state_dict_adapter", None), "_v5_peft_target_parameters", ()):
            config.setdefault("target_parameters", list(fused))

    change_config(addons, change)
