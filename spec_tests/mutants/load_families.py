# SPDX-License-Identifier: Apache-2.0
"""Faults that show with other families, and with modules of like names (spec/load.md, from LOAD-009 on)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants import editing_peft as edit
from spec_tests.mutants.registry import mutant


@mutant(kills=["LOAD-009"], source="the reference until November 2026")
def keeps_no_towers_apart(addons: Any) -> None:
    """PEFT puts LoRA on another tower's module of that name."""
    edit.exclude_nothing(addons)


@mutant(kills=["IDX-015", "LOAD-011"], source="the reference until November 2026")
def saves_under_inner_names(addons: Any) -> None:
    """Version 4 gives the model random experts."""
    edit.keep_inner_names(addons)


@mutant(kills=["IDX-016"], source="`save_pretrained` of transformers 5.6 to 5.24, and the reference with it")
def leaves_prefixes_out_that_version_4_knows(addons: Any) -> None:
    """Version 4 draws CLIP's tower anew."""
    edit.forget_the_originals_names(addons)
