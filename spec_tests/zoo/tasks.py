# SPDX-License-Identifier: Apache-2.0
"""Tasks that the installed PEFT cannot do with the installed transformers, whatever an adapter says."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from spec_tests.zoo.build import build

# A model of each task, of a family that PEFT is made for.
_USUAL = {"SEQ_2_SEQ_LM": "t5", "CAUSAL_LM": "llama"}


def unmade_task(directory: Path) -> str | None:
    """The task type of an adapter, if PEFT makes no model of that task even from the most usual family.

    PEFT 0.20 takes a method of generation from a seq2seq model that transformers 5.18 no longer has.
    """
    task = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8")).get("task_type")
    return task if task in _USUAL and not _made(task) else None


@cache
def _made(task: str) -> bool:
    import peft

    try:
        peft.get_peft_model(build(_USUAL[task]), peft.LoraConfig(task_type=task, target_modules="all-linear"))
    except AttributeError:
        return False
    return True
