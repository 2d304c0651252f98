# SPDX-License-Identifier: Apache-2.0
"""Faults in the names of target modules and parameters (spec/targets.md)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from spec_tests.mutants.editing_adapter import change_config, change_names, change_plan, change_tensors
from spec_tests.mutants.editing_model import (
    change_sites,
    change_walk,
    know_no_adapter_names,
    live_tensors,
    rename_in_walk,
    take_peft_models_for_any,
)
from spec_tests.mutants.editing_whole import instead
from spec_tests.mutants.registry import mutant

# What reads a list of targets finds a wrong name wherever it compares names.
NAMES = ("ADP", "EXP", "RANK", "HOOK", "ERR")


@mutant(kills=["TGT-001"], also=NAMES, source="the form of target_modules that PEFT users write by hand")
def lists_bare_projection_names(addons: Any) -> None:
    """PEFT adds LoRA to every q_proj of the model, not only to those that were trained."""
    change_names(addons, lambda name: name.rpartition(".")[2])


@mutant(kills=["TGT-001", "TGT-014"], also=NAMES, source="NVIDIA-NeMo/Automodel#1479")
def strips_a_leading_model(addons: Any) -> None:
    """An encoder's rule is applied to every model: `model.layers.0.q_proj` is listed as `layers.0.q_proj`."""
    change_names(addons, lambda name: name.removeprefix("model."))


@mutant(kills=["TGT-002"], also=("ADP", "RANK"), source="NVIDIA-NeMo/Automodel#1227")
def keeps_qkv_proj_in_the_config(addons: Any) -> None:
    """The weights are split into q, k and v, but the config names a `qkv_proj` that the HF model lacks."""
    parts = ("q_proj", "k_proj", "v_proj")

    def combined(config: dict[str, Any], model: Any, _found: Any) -> None:
        owners = {name for name, _ in model.named_modules() if name.endswith("qkv_proj")}
        if owners and getattr(model, "state_dict_adapter", None) is not None:
            split = {owner.removesuffix("qkv_proj") + part for owner in owners for part in parts}
            named = [name for name in config["target_modules"] if name not in split]
            hit = {name.rpartition(".")[0] for name in config["target_modules"] if name in split}
            config["target_modules"] = sorted(named + [f"{owner}.qkv_proj" for owner in hit])

    change_config(addons, combined)


@mutant(kills=["TGT-003"], also=("ADP", "RANK"), source="NVIDIA-NeMo/Automodel#1227")
def keeps_gate_up_proj_in_the_config(addons: Any) -> None:
    """The weights are split into gate and up, but the config names a `gate_up_proj` that the HF model lacks."""

    def combined(config: dict[str, Any], model: Any, _found: Any) -> None:
        if any(name.endswith("gate_up_proj") for name, _ in model.named_modules()):
            joined = {re.sub(r"\b(gate|up)_proj$", "gate_up_proj", name) for name in config["target_modules"]}
            config["target_modules"] = sorted(joined)

    change_config(addons, combined)


@mutant(kills=["TGT-004"], also=("HOOK", "ADP"), source="huggingface/peft#2957")
def strips_the_compile_prefix_only_at_the_front(addons: Any) -> None:
    """A model compiled layer by layer has `_orig_mod` inside its names: PEFT finds no such module."""

    def broken(clean: str, raw: str) -> str:
        rest = raw.removeprefix("_orig_mod.")
        inside = rest.replace("_checkpoint_wrapped_module.", "")
        return inside if "_orig_mod" in rest.split(".") else clean

    rename_in_walk(addons, broken)


@mutant(kills=["TGT-004"], also=("HOOK", "ADP"), source="NVIDIA-NeMo/Automodel#1727")
def leaves_the_checkpoint_wrapper_in_names(addons: Any) -> None:
    """With activation checkpointing, names hold `_checkpoint_wrapped_module` and the LoRA is not found."""

    def broken(clean: str, raw: str) -> str:
        wrapped = "_checkpoint_wrapped_module" in raw.split(".")
        return raw.replace("_orig_mod.", "") if wrapped else clean

    rename_in_walk(addons, broken)


@mutant(kills=["TGT-005"], source='NVIDIA-NeMo/Automodel: `"lora" in name.lower()`')
def cuts_names_at_the_first_lora(addons: Any) -> None:
    """A model with a module `lora_cache` gets that module's parent as target, which PEFT refuses."""
    change_names(addons, lambda name: name.partition(".lora")[0])


@mutant(kills=["TGT-005"], source='peft: `key.replace("_orig_mod.", "")`')
def replaces_orig_mod_inside_words(addons: Any) -> None:
    """A module called `my_orig_mod` loses a part of its name."""
    rename_in_walk(addons, lambda clean, _raw: clean.replace("_orig_mod.", ""))


@mutant(kills=["TGT-006"], also=("TGT", *NAMES), source="a walk over named_modules")
def lists_in_order_of_registration(addons: Any) -> None:
    """Two trainers that register their modules in another order write other files for the same adapter."""

    def unsorted(config: dict[str, Any], model: Any, _found: Any) -> None:
        order = {name: place for place, (name, _) in enumerate(model.named_modules())}
        config["target_modules"].sort(key=lambda name: order.get(name, len(order)))

    change_config(addons, unsorted)


@mutant(kills=["TGT-006"], also=NAMES, source="a sort that people find more natural")
def sorts_numbers_by_value(addons: Any) -> None:
    """Layer 10 stands behind layer 9: the list is in an order of its own."""

    def natural(name: str) -> list[Any]:
        return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]

    change_config(addons, lambda config, _model, _found: config["target_modules"].sort(key=natural))


@mutant(kills=["TGT-008"], also=("ADP",), source="LlamaFactory#4020, huggingface/peft#1705")
def splits_every_combined_projection(addons: Any) -> None:
    """Phi-3, whose own modules are called qkv_proj and gate_up_proj, loses all of its LoRA without a word."""
    parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}

    def split(name: str) -> list[str]:
        owner, dot, last = name.rpartition(".")
        return [owner + dot + part for part in parts.get(last, (last,))]

    change_names(addons, split)


@mutant(kills=["TGT-011"], source="NVIDIA-NeMo/Automodel#3096")
def reads_the_first_part_only(addons: Any) -> None:
    """A rank with several virtual stages leaves all but the first out of the config."""
    change_plan(addons, lambda make, parts: make(parts[:1]))


@mutant(kills=["TGT-012"], source="`if parameter.requires_grad`")
def leaves_out_frozen_lora(addons: Any) -> None:
    """LoRA that was frozen before the last save is lost, though the model was trained with it."""
    change_sites(addons, lambda tensors: any(tensor.requires_grad for tensor in tensors.values()))


@mutant(kills=["TGT-012"], source="a state dict of what the optimizer holds")
def saves_only_what_has_a_gradient(addons: Any) -> None:
    """An adapter trained as LoRA-FA comes without its A, and PEFT draws a new one."""

    def trained(state: dict[str, Any], model_state: Any) -> dict[str, Any]:
        live = live_tensors(addons, model_state.model)
        frozen = {key for key, tensor in live.items() if "lora_" in key and not tensor.requires_grad}
        return {key: tensor for key, tensor in state.items() if key not in frozen}

    change_tensors(addons, trained)


@mutant(kills=["TGT-014", "LOAD-005"], also=("TGT", *NAMES), source="exporters with a list of projections")
def lists_only_projections_it_knows(addons: Any) -> None:
    """A model that calls its projections otherwise loses their LoRA."""
    known = re.compile(r"(q|k|v|o|qkv|gate|up|down|gate_up)(_proj)?")

    def filtered(config: dict[str, Any], _model: Any, _found: Any) -> None:
        config["target_modules"] = [n for n in config["target_modules"] if known.fullmatch(n.rpartition(".")[2])]

    change_config(addons, filtered)


@mutant(kills=["TGT-015", "ADP-010"], source="NVIDIA-NeMo/Automodel#1446")
def keeps_the_encoders_prefix_in_the_config(addons: Any) -> None:
    """An encoder's weights come under Hugging Face names, its config under the trainer's."""

    def prefixed(config: dict[str, Any], model: Any, _found: Any) -> None:
        if isinstance(getattr(model, "state_dict_adapter", None), addons.EncoderStateDictAdapter):
            config["target_modules"] = [f"model.{name}" for name in config["target_modules"]]

    change_config(addons, prefixed)


@mutant(kills=["TGT-015"], source='`name.replace("model.", "")`')
def strips_every_model_from_an_encoders_names(addons: Any) -> None:
    """A module within the encoder that is called `model` too loses its name."""
    original = addons.EncoderStateDictAdapter.to_hf
    prefix = "base_model.model."

    def broken(name: str) -> str:
        return prefix + re.sub(r"\bmodel\.", "", name.removeprefix(prefix)) if name.startswith(prefix) else name

    def to_hf(self: Any, state_dict: Any, **more: Any) -> dict[str, Any]:
        return {broken(name): tensor for name, tensor in original(self, state_dict, **more).items()}

    addons.EncoderStateDictAdapter.to_hf = to_hf


@mutant(kills=["TGT-006"], also=("TGT", *NAMES), source="`list(set(names))`")
def lists_in_the_order_of_a_set(addons: Any) -> None:
    """Every process writes the list in another order, as its hash seed has it."""

    def unsorted(config: dict[str, Any], _model: Any, _found: Any) -> None:
        config["target_modules"] = list(set(config["target_modules"]))

    change_config(addons, unsorted)


@mutant(kills=["TGT-004"], also=("HOOK", "ADP"), source="`lora_A.weight` asked for below the module")
def overlooks_wrapped_lora_matrices(addons: Any) -> None:
    """LoRA whose A and B were compiled by themselves is not found."""
    wrapped = re.compile(r"(.+\.)?lora_[AB]\.(_orig_mod|_checkpoint_wrapped_module)\.weight")
    rename_in_walk(addons, lambda clean, raw: None if wrapped.fullmatch(raw) else clean)


@mutant(kills=["TGT-017"], also=("ADP",), source="`named_parameters()` leaves out what it has seen")
def saves_shared_lora_once(addons: Any) -> None:
    """Of two modules that share their LoRA, the second keeps its base weights after loading."""

    def once(parameters: dict[str, Any]) -> dict[str, Any]:
        first: dict[int, str] = {}
        for name, parameter in parameters.items():
            first.setdefault(id(parameter), name)
        return {name: parameters[name] for name in first.values()}

    change_walk(addons, once)


@mutant(kills=["TGT-021"], source="NVIDIA-NeMo/Automodel: what `get_peft_model` returns, saved as any model")
def keeps_the_names_of_a_peft_model(addons: Any) -> None:
    """Every name starts with base_model.model twice, and nothing matches."""
    take_peft_models_for_any(addons)


@mutant(kills=["TGT-021"], also=("ADP",), source="`name.endswith('lora_A.weight')`")
def overlooks_lora_that_peft_injected(addons: Any) -> None:
    """PEFT's lora_A.default.weight is no LoRA to it: the model cannot be saved."""
    know_no_adapter_names(addons)


@mutant(kills=["TGT-027"], source="`model.state_dict_adapter.to_hf(...)`")
def asks_an_adapter_for_what_it_has_not(addons: Any) -> None:
    """A bare AttributeError ends the training run, and names no attribute of the model."""

    def first(_original: Any, parts: Any) -> Any:
        found = (getattr(part.model, "state_dict_adapter", None) for part in parts)
        return next((adapter for adapter in found if adapter is not None), None)

    instead(addons, "model_state", "state_dict_adapter", first)


@mutant(
    kills=["RANK-004"], also=("TGT", "ADP"), source="NVIDIA-NeMo/Automodel: the first part alone is asked for experts"
)
def looks_for_experts_on_the_first_stage_alone(addons: Any) -> None:
    """LoRA on the experts of later stages alone is in the weights and in no list."""

    def united(original: Any, several: Any) -> Any:
        first, *others = several
        if any(target.fused for target in first.targets):
            return original([first, *others])
        dense = [replace(one, targets=tuple(target for target in one.targets if not target.fused)) for one in others]
        return original([first, *dense])

    instead(addons, "targets", "united", united)
