# SPDX-License-Identifier: Apache-2.0
"""Faults with chat templates, processors and their classes (spec/tokenizer.md, from TOK-006 on)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants import editing_peft as edit
from spec_tests.mutants.registry import mutant


@mutant(kills=["TOK-006"], source="the reference until November 2026")
def leaves_further_chat_templates(addons: Any) -> None:
    """A template of the earlier tokenizer is read with the new one."""
    edit.own_of_tokenizers(addons, lambda name: not name.startswith("additional_chat_templates"))


@mutant(kills=["TOK-007"], source="the reference until November 2026")
def leaves_an_earlier_processor(addons: Any) -> None:
    """The sampling rate is the earlier one's."""
    edit.own_of_tokenizers(addons, lambda name: "processor" not in name)


@mutant(kills=["TOK-007"], source="huggingface/transformers#44623")
def writes_processors_for_version_5_only(addons: Any) -> None:
    """Version 4 finds no preprocessor_config.json."""
    edit.save_processors_whole(addons)


@mutant(kills=["TOK-008"], source="huggingface/transformers#47838")
def keeps_both_names_of_special_tokens(addons: Any) -> None:
    """Version 5 drops the one list."""
    edit.change_form_of_version_4(addons, lambda settings: settings)


@mutant(kills=["TOK-009"], source="unslothai/unsloth#4085")
def names_classes_that_nobody_has(addons: Any) -> None:
    """No reader can import the processor."""
    edit.name_live_classes(addons)
