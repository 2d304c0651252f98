# SPDX-License-Identifier: Apache-2.0
"""Faults in refusing what a save would lose (spec/targets.md, TGT-016 and TGT-018)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants.editing_model import allow_half_pairs, change_trained, overlook_other_lora, rename_in_walk
from spec_tests.mutants.registry import mutant


@mutant(kills=["TGT-016"], source="an exporter that writes what it finds")
def writes_half_a_pair(addons: Any) -> None:
    """LoRA with an A but no B is written, and PEFT fills in a new B."""
    allow_half_pairs(addons)


@mutant(kills=["TGT-016"], source="NVIDIA-NeMo/Automodel: root-level lora_A")
def leaves_out_lora_on_the_root(addons: Any) -> None:
    """LoRA on the outermost module is trained and then lost without a word."""
    rename_in_walk(addons, lambda clean, _raw: None if clean.startswith(("lora_A.", "lora_B.")) else clean)


@mutant(kills=["TGT-018"], source="NVIDIA-NeMo/Automodel#1814: only what is LoRA is looked at")
def leaves_out_trained_heads(addons: Any) -> None:
    """A classifier's trained head is lost without a word, and the adapter loads with a random one."""
    change_trained(addons, lambda _name: False)


@mutant(kills=["TGT-018"], source='`"lora_" in name` taken for: it will be saved')
def leaves_out_lora_of_other_kinds(addons: Any) -> None:
    """LoRA on an embedding, or with a bias, is trained and then lost without a word."""
    overlook_other_lora(addons)
