# SPDX-License-Identifier: Apache-2.0
"""Faults in comparing what the ranks of `save_adapter` were told (spec/ranks.md, RANK-009 and RANK-012)."""

from __future__ import annotations

import os
from typing import Any

from spec_tests.mutants.editing_saving import change_settings, change_settings_as_told
from spec_tests.mutants.registry import mutant


def _leave_out(package: Any, word: str) -> None:
    change_settings(package, lambda settings: {name: settings[name] for name in settings if word not in name})


@mutant(kills=["RANK-009"], source="executed with two directories: both ranks returned, and one was empty")
def compares_no_directories(addons: Any) -> None:
    """A rank returns as if its directory had been written, and it is empty."""
    _leave_out(addons, "directory")


@mutant(kills=["RANK-009"], source="a setting that was added later, and not to the list of what is compared")
def compares_no_tokenizers(addons: Any) -> None:
    """A tokenizer that only some ranks were given is saved or left out, as rank 0 has it."""
    _leave_out(addons, "tokenizer")


@mutant(kills=["RANK-009"], source="a setting that was added later, and not to the list of what is compared")
def compares_no_original_paths(addons: Any) -> None:
    """The code of the base model travels along or not, as rank 0 has it."""
    _leave_out(addons, "original_model_path")


@mutant(kills=["RANK-009"], source="a setting that was added later, and not to the list of what is compared")
def compares_no_layouts_of_experts(addons: Any) -> None:
    """Ranks that would save the layout of older PEFT get that of newer PEFT, or the reverse."""
    _leave_out(addons, "legacy_paramwrapper_layout")


@mutant(kills=["RANK-012"], source="a comparison before `Path.resolve`")
def compares_directories_as_text(addons: Any) -> None:
    """A rank with another working directory, or a slash too many, makes every save fail."""
    change_settings_as_told(addons, lambda settings, told: settings.update(directory=os.fspath(told["directory"])))


@mutant(kills=["RANK-012"], source="`tokenizer is other`, for objects that each rank has made itself")
def compares_tokenizers_as_objects(addons: Any) -> None:
    """Where each rank has read its own tokenizer, no adapter can be saved."""

    def compared(settings: dict[str, Any], told: dict[str, Any]) -> None:
        # Ranks that are forked from one process may have different objects under one id.
        settings["tokenizer"] = (os.getpid(), id(told.get("tokenizer")))

    change_settings_as_told(addons, compared)
