# SPDX-License-Identifier: Apache-2.0
"""Faults with adapters that PEFT injected (spec/adapter_config.md, from ADP-025 on)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants import editing_peft as edit
from spec_tests.mutants.registry import mutant


@mutant(kills=["ADP-025"], also=("LOAD",), source="the reference until November 2026")
def names_tasks_that_cannot_be_called(addons: Any) -> None:
    """An adapter of CLIP loads, and its first forward raises a TypeError."""
    edit.name_tasks_by_architecture_alone(addons)


@mutant(kills=["ADP-025"], source="`config['task_type'] = task_type(model)`")
def overrides_the_users_task(addons: Any) -> None:
    """PEFT gives the model another forward than the user chose."""
    edit.change_task_of(addons, lambda right, _config, model: right() and edit.own_task(addons, model))


@mutant(kills=["ADP-026", "LOAD-010"], source="the reference until November 2026")
def leaves_resized_embeddings_behind(addons: Any) -> None:
    """The new words have the numbers that the reader draws."""
    edit.never_find_resized_embeddings(addons)


@mutant(kills=["ADP-027"], source="`isinstance(scale, (int, float))`")
def reads_scales_of_python_only(addons: Any) -> None:
    """A scale of 10 in a tensor is read as 2."""
    edit.change_scale(addons, lambda scale: float(scale) if isinstance(scale, (int, float)) else None)


@mutant(kills=["ADP-028", "LOAD-010"], also=("TGT",), source="the reference until November 2026")
def asks_for_a_head_that_has_lora(addons: Any) -> None:
    """PEFT ends in a KeyError."""
    edit.change_task_of(addons, lambda _right, _config, model: edit.own_task(addons, model))


@mutant(kills=["ADP-029"], source="`set(config.modules_to_save) <= set(heads)`")
def refuses_the_config_that_peft_completed(addons: Any) -> None:
    """No classifier that PEFT trains can be saved."""
    edit.take_every_name_for_a_module(addons)


@mutant(kills=["ADP-022"], source="a list of three settings")
def knows_three_settings(addons: Any) -> None:
    """Whatever PEFT adds to its config is taken for nothing."""
    edit.know_more_settings(addons, "alora_invocation_tokens", "trainable_token_indices", "use_qalora")


@mutant(kills=["ADP-030"], source="the reference until November 2026")
def says_nothing_of_an_adapter_of_zeros(addons: Any) -> None:
    """It loads, and does nothing."""
    edit.without(addons, "_check_changes")


@mutant(kills=["ADP-031"], source="`name.replace('.', r'\\.')`")
def escapes_dots_alone(addons: Any) -> None:
    """The pattern of `a+b` fits `aab`."""
    edit.escape_dots_alone(addons)
