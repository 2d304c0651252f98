# SPDX-License-Identifier: Apache-2.0
"""Faults in merging LoRA into a whole model (spec/merging.md)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants import editing_peft as edit
from spec_tests.mutants.registry import mutant


@mutant(kills=["MRG-001"], source="`model.merge_and_unload()` before every save")
def merges_unasked(addons: Any) -> None:
    """The user wanted to be told."""
    edit.merge_unasked(addons)


@mutant(kills=["MRG-001"], source="volcengine/verl#7285")
def publishes_the_base_model(addons: Any) -> None:
    """Weeks of training are served as the base model."""
    edit.drop_unasked(addons)


@mutant(kills=["MRG-002"], source="NVIDIA-NeMo/RL#3696")
def merges_in_the_dtype_of_the_weight(addons: Any) -> None:
    """In bfloat16 the update is rounded twice."""

    def broken(original: Any, weight: Any, scale: Any, factors: Any, kind: Any, turned: bool) -> Any:
        rounded = {name: factor.to(weight.dtype).float() for name, factor in factors.items()}
        return original(weight, scale, rounded, kind, turned=turned).to(weight.dtype)

    edit.change_sum(addons, broken)


@mutant(kills=["MRG-002"], source="`W + scale * B @ A` for every LoRA")
def merges_dora_as_plain_lora(addons: Any) -> None:
    """The magnitudes are lost."""

    def broken(original: Any, weight: Any, scale: Any, factors: Any, kind: Any, turned: bool) -> Any:
        plain = {name: factor for name, factor in factors.items() if name != "lora_magnitude"}
        return original(weight, scale, plain, kind, turned=turned)

    edit.change_sum(addons, broken)


@mutant(kills=["MRG-002"], source="`lora_B @ lora_A` for GPT-2's Conv1D of as many inputs as outputs")
def forgets_to_turn_the_update(addons: Any) -> None:
    """A square layer gets the update of its transpose."""

    def broken(original: Any, weight: Any, scale: Any, factors: Any, kind: Any, turned: bool) -> Any:
        square = weight.ndim == 2 and weight.shape[0] == weight.shape[1]
        return original(weight, scale, factors, kind, turned=turned and not square)

    edit.change_sum(addons, broken)


@mutant(kills=["MRG-003"], source="`weight += delta`")
def merges_into_the_live_model(addons: Any) -> None:
    """Training goes on with the update counted twice."""
    edit.merge_in_place(addons)


@mutant(kills=["MRG-004"], source="no check")
def merges_whatever_there_is(addons: Any) -> None:
    """LoRA that is merged already is merged again."""
    edit.without(addons, "check_mergeable")
