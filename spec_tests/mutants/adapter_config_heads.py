# SPDX-License-Identifier: Apache-2.0
"""Faults in what travels of a head, and in the task that goes with it (spec/adapter_config.md, ADP-021 and ADP-023)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants.editing_adapter import change_tensors
from spec_tests.mutants.editing_model import change_head_match, find_heads_where, forget_known_architectures
from spec_tests.mutants.editing_peft import name_classes_as_python_does
from spec_tests.mutants.registry import mutant


@mutant(kills=["ADP-021"], also=("TGT",), source='NVIDIA-NeMo/Automodel: `"lora_" in name`; huggingface/peft#577')
def leaves_the_head_behind(addons: Any) -> None:
    """PEFT ends in a KeyError, and the trained head is lost."""
    change_tensors(addons, lambda state, _model_state: {key: t for key, t in state.items() if "lora_" in key})


@mutant(kills=["ADP-021"], source="`if parameter.requires_grad`")
def saves_a_head_only_if_it_was_trained(addons: Any) -> None:
    """PEFT asks for the head of a question answering model whether or not it was trained."""
    find_heads_where(addons, bool)


@mutant(kills=["ADP-021"], source="peft `any(key.endswith(target) for target in modules_to_save)`")
def matches_heads_by_their_whole_names(addons: Any) -> None:
    """PEFT looks for the pre_classifier of a model whose classifier was trained, and ends in a KeyError."""
    change_head_match(addons, lambda tensor, names: tensor.partition(".")[0] in names)


@mutant(kills=["ADP-023"], also=("LOAD",), source='NVIDIA-NeMo/Automodel: `name.split("For")[-1]`')
def reads_the_task_off_the_end_of_the_name(addons: Any) -> None:
    """A MarianMTModel is taken for a bare encoder, and PEFT gives it another forward."""
    forget_known_architectures(addons)


@mutant(kills=["ADP-023"], source="the reference until November 2026: `type(model).__name__`")
def takes_the_class_in_front_for_the_architecture(addons: Any) -> None:
    """A MarianMTModel that FSDP2 has sharded is taken for a bare encoder."""
    name_classes_as_python_does(addons)
