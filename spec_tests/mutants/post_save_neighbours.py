# SPDX-License-Identifier: Apache-2.0
"""Faults with what else is in the destination (spec/post_save.md, from POST-012 on)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants import editing_peft as edit
from spec_tests.mutants.editing_publishing import make_nothing_alike
from spec_tests.mutants.registry import mutant


@mutant(kills=["POST-012"], source="`directory.glob('model*.safetensors')`")
def removes_what_is_called_alike(addons: Any) -> None:
    """A user's own weights are gone."""
    edit.own_by_pattern(addons, "model*.safetensors")


@mutant(kills=["POST-013"], source="axolotl train.py; torchtune")
def saves_an_adapter_beside_a_model(addons: Any) -> None:
    """The LoRA is applied twice."""
    edit.see_no_other_checkpoint(addons)


@mutant(kills=["POST-014"], source="`os.rename(temporary, directory)`")
def forgets_the_mode_of_the_directory(addons: Any) -> None:
    """What one group could read, everybody can after the second save."""
    make_nothing_alike(addons)
