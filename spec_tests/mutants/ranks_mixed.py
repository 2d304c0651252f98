# SPDX-License-Identifier: Apache-2.0
"""Faults with models that compute in another dtype than they train in (spec/ranks.md, RANK-013)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants import editing_peft as edit
from spec_tests.mutants.registry import mutant


@mutant(kills=["RANK-013"], source="`model.named_parameters()` after an evaluation")
def reads_the_copies_of_a_forward(addons: Any) -> None:
    """The trained float32 values are rounded to bfloat16."""
    edit.read_what_is_shown(addons)
