# SPDX-License-Identifier: Apache-2.0
"""Faults with what PEFT trains beside one LoRA (spec/targets.md, from TGT-024 on)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants import editing_peft as edit
from spec_tests.mutants.registry import mutant


@mutant(kills=["TGT-024"], source="the reference until November 2026")
def saves_the_base_layers_of_other_tuners(addons: Any) -> None:
    """Weights come out under names with `base_layer` in them."""
    edit.without(addons, "_check_tuners")
    edit.without(addons, "_check_peft_type")


@mutant(kills=["TGT-024"], also=("ADP",), source="the reference until November 2026")
def takes_variants_for_plain_lora(addons: Any) -> None:
    """ALoRA is applied to every token."""
    edit.without(addons, "_check_variant")


@mutant(kills=["TGT-018", "TGT-024"], source="the reference until November 2026")
def unites_two_adapters(addons: Any) -> None:
    """Two adapters on different modules become one."""
    edit.without(addons, "_check_one_adapter")


@mutant(kills=["TGT-025", "LOAD-010"], source="`modules.add(name.rpartition('.lora_')[0])`")
def lists_bare_parameters_as_modules(addons: Any) -> None:
    """PEFT finds no linear layer there."""
    edit.list_bare_parameters_as_modules(addons)


@mutant(kills=["TGT-026"], source="axolotl-ai-cloud/axolotl#3772")
def saves_a_shard_for_the_whole(addons: Any) -> None:
    """The adapter cannot be loaded."""
    edit.without(addons, "_check_whole")
