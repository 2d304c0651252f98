# SPDX-License-Identifier: Apache-2.0
"""Faults in generation_config.json (spec/generation.md)."""

from __future__ import annotations

import tempfile
from typing import Any

import transformers

from spec_tests.mutants import editing_peft as edit
from spec_tests.mutants.editing_content import change_files, change_generation
from spec_tests.mutants.registry import mutant


@mutant(kills=["GEN-001", "GEN-002"], source="`GenerationConfig.from_model_config`")
def makes_generation_settings_from_the_config(addons: Any) -> None:
    """`generate` takes other defaults than the trained model has."""

    def change(content: Any, model: Any) -> Any:
        if content is None or not hasattr(model, "config"):
            return content
        return transformers.GenerationConfig.from_model_config(model.config).to_dict()

    change_generation(addons, change)


@mutant(kills=["GEN-002"], source="transformers#29988")
def saves_generation_settings_by_save_pretrained(addons: Any) -> None:
    """The save fails over a temperature that is not used, when training is over."""

    def change(content: Any, model: Any) -> Any:
        with tempfile.TemporaryDirectory() as directory:
            if content is not None:
                model.generation_config.save_pretrained(directory)
        return content

    change_generation(addons, change)


@mutant(kills=["GEN-003"], source="only config.json thought of")
def leaves_generation_settings_in_the_new_form(addons: Any) -> None:
    """Beside the old config transformers 4 reads what version 5 wrote."""

    def change(make: Any, save: Any) -> dict[str, Any]:
        files = dict(make(save))
        live = files.pop("generation_config.v5.json", None)
        return files if live is None else {**files, "generation_config.json": live}

    change_files(addons, change)


@mutant(kills=["GEN-004"], source="`if model.config is not None:` around both")
def writes_generation_settings_beside_a_config_alone(addons: Any) -> None:
    """A module with a generation config and no other loses it."""
    change_generation(addons, lambda content, model: content if hasattr(model, "config") else None)


@mutant(kills=["GEN-005"], source="marin-community/marin#4153")
def says_nothing_of_another_end(addons: Any) -> None:
    """The model never stops."""
    edit.without(addons, "check_end")
