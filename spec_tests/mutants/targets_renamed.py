# SPDX-License-Identifier: Apache-2.0
"""Faults in the names of modules that a model renames on saving (spec/targets.md, TGT-022)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants.editing_adapter import change_config
from spec_tests.mutants.editing_model import lora_modules
from spec_tests.mutants.registry import mutant


def _adapter_that_renames(model: Any) -> Any:
    adapter = getattr(model, "state_dict_adapter", None)
    return adapter if hasattr(adapter, "map_peft_target_module_to_hf") else None


@mutant(kills=["TGT-022"], source="NVIDIA-NeMo/Automodel: names read off the modules")
def lists_modules_as_the_trainer_calls_them(addons: Any) -> None:
    """PEFT finds no module of that name in the Hugging Face model."""

    def change(config: dict[str, Any], model: Any, _found: Any) -> None:
        if _adapter_that_renames(model):
            config["target_modules"] = lora_modules(addons, model)

    change_config(addons, change)


@mutant(kills=["TGT-022"], source='NVIDIA-NeMo/Automodel: `name.replace(".old.", ".new.")`')
def renames_inside_names_alone(addons: Any) -> None:
    """A module that is itself the renamed one keeps its old name in the config, and not in the weights."""

    def change(config: dict[str, Any], model: Any, _found: Any) -> None:
        if adapter := _adapter_that_renames(model):
            ends = f".{adapter.new}"
            names = config["target_modules"]
            config["target_modules"] = [
                f"{name.removesuffix(ends)}.{adapter.old}" if name.endswith(ends) else name for name in names
            ]

    change_config(addons, change)
