# SPDX-License-Identifier: Apache-2.0
"""NeMo AutoModel's own ``Checkpointer`` as a contender: with the settings with which its recipes save."""

from __future__ import annotations

import logging
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from nemo_automodel.components._peft.lora import PeftConfig, apply_lora_to_linear_modules
from nemo_automodel.components.checkpoint.checkpointing import CheckpointingConfig

from spec_tests.builders import hf
from spec_tests.builders.trained import ATTENTION, RANK
from spec_tests.faults.saves import ADAPTER, WHOLE, Kind, adapter_numbers, filled, live_whole, whole_numbers

_WHOLE = Path("model", "consolidated")
"""Where in a checkpoint the files lie that others read."""


@cache
def _base() -> Path:
    return hf.save_base(hf.llama(), Path(tempfile.mkdtemp(prefix="faults-base-")) / "base")


def _live_adapter(number: int) -> Any:
    live = hf.llama()
    apply_lora_to_linear_modules(live, _settings(number))
    return filled(live, number)


def _settings(number: int) -> Any:
    return PeftConfig(target_modules=[f"*.{name}" for name in ATTENTION], dim=RANK, alpha=number)


def _save_adapter(live: Any, directory: Path) -> None:
    _save(live, directory, _settings(live.number))


def _save(live: Any, directory: Path, peft_config: Any = None) -> None:
    logging.disable(logging.WARNING)
    settings = {"model_repo_id": str(_base()), "save_consolidated": True, "is_peft": peft_config is not None}
    config = CheckpointingConfig(checkpoint_dir=str(directory), **settings)
    checkpointer = config.build(dp_rank=0, tp_rank=0, pp_rank=0)
    checkpointer.save_model(live, str(directory), peft_config=peft_config)
    checkpointer.close()


KINDS = [
    Kind(
        ADAPTER,
        "model/adapter_config.json",
        _live_adapter,
        _save_adapter,
        lambda directory: adapter_numbers(directory / "model"),
    ),
    Kind(WHOLE, str(_WHOLE / "config.json"), live_whole, _save, lambda directory: whole_numbers(directory / _WHOLE)),
]
