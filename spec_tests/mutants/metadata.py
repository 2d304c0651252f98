# SPDX-License-Identifier: Apache-2.0
"""Faults in automodel_peft_config.json (spec/metadata.md)."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Any

import torch

from spec_tests.mutants.editing import around
from spec_tests.mutants.editing_adapter import (
    change_metadata,
    change_stored_values,
    json_form,
    swap_layout_stamps,
)
from spec_tests.mutants.registry import mutant


@mutant(kills=["META-001", "META-003"], source="`{k: v for k, v in config.items() if v}`")
def leaves_out_settings_that_are_empty(addons: Any) -> None:
    """A dropout of 0.0 and an empty list come back as the trainer's defaults."""

    def shortened(content: dict[str, Any], _peft_config: Any) -> None:
        for key in [key for key, value in content.items() if not value]:
            del content[key]

    change_metadata(addons, shortened)


@mutant(kills=["META-001"], source="a config that is dumped whole")
def stores_rank_and_alpha_twice(addons: Any) -> None:
    """Somebody corrects one of the two files, and they disagree."""

    def twice(content: dict[str, Any], peft_config: Any) -> None:
        content |= {name: getattr(peft_config, name) for name in ("dim", "alpha") if hasattr(peft_config, name)}

    change_metadata(addons, twice)


def _formed(package: Any, kind: Any, form: Any) -> None:
    """Values of a type are stored in another form."""

    def broken(original: Any, value: Any, where: str, *more: Any) -> Any:
        return form(value, where) if isinstance(value, kind) else original(value, where, *more)

    change_stored_values(package, broken)


@mutant(kills=["META-002"], source="`str(dtype).split('.')[-1]`, as transformers writes it")
def drops_torch_from_dtypes(addons: Any) -> None:
    """The trainer's reader looks for `torch.bfloat16` and finds `bfloat16`."""
    _formed(addons, torch.dtype, lambda value, _where: str(value).rpartition(".")[2])


@mutant(kills=["META-004"], source="`json.dump(..., default=str)`")
def writes_the_str_of_what_json_lacks(addons: Any) -> None:
    """A setting comes back as `<object object at 0x7f...>`, another one at each save."""

    def broken(original: Any, value: Any, where: str, *more: Any) -> Any:
        try:
            return original(value, where, *more)
        except TypeError:
            return str(value)

    change_stored_values(addons, broken)


@mutant(kills=["META-004"], source="`json.dump` allows NaN by default")
def writes_nan(addons: Any) -> None:
    """The file holds `NaN`, which is no JSON: strict readers stop there."""
    _formed(addons, float, lambda value, _where: value)


@mutant(kills=["META-005"], source="NVIDIA-NeMo/Automodel: `target_modules={'q_proj'}`")
def stores_sets_in_their_own_order(addons: Any) -> None:
    """Every process writes another file, as its hash seed has it."""
    right = json_form(addons)
    # Reversed, so that the fault is there whatever the hash seed.
    _formed(addons, (set, frozenset), lambda value, where: right(sorted(value, reverse=True), where))


@mutant(kills=["META-005"], source="`str(value)` of an enum")
def stores_enums_by_their_name(addons: Any) -> None:
    """The trainer finds `Format.PLAIN` where it expects `unquantized`."""
    _formed(addons, enum.Enum, lambda value, _where: str(value))


@mutant(kills=["META-006"], source="a config that is read back from one of its two files")
def reads_the_config_back_without_rank_and_alpha(addons: Any) -> None:
    """A run is continued with the default rank."""

    def broken(original: Any, model_path: Any) -> dict[str, Any]:
        return {key: value for key, value in original(model_path).items() if key not in ("dim", "alpha")}

    around(addons, addons.load_automodel_peft_config_dict, broken)


@mutant(kills=["META-006"], source="a reader that knows the names of its trainer's own configs alone")
def gives_a_config_of_peft_the_names_of_the_trainer(addons: Any) -> None:
    """`peft.LoraConfig(**settings)` is a TypeError: PEFT knows neither `dim` nor `alpha`."""

    def broken(original: Any, model_path: Any) -> dict[str, Any]:
        names = {"r": "dim", "lora_alpha": "alpha"}
        return {names.get(key, key): value for key, value in original(model_path).items()}

    around(addons, addons.load_automodel_peft_config_dict, broken)


class _Kept(dict[str, Any]):
    def pop(self, *_args: Any) -> None:
        """Keep what is there."""


@mutant(kills=["META-007"], source="a stamp that is a setting like any other")
def keeps_an_earlier_saves_stamp(addons: Any) -> None:
    """An adapter without fused experts says in which layout it has them."""
    change_metadata(addons, lambda content, _config: _Kept(content))


@mutant(kills=["META-007"], source="NVIDIA-NeMo/Automodel before 0.7.0: the stamp of the installed PEFT")
def stamps_one_layout_for_the_other(addons: Any) -> None:
    """The reader turns every expert's LoRA over, or refuses it."""
    swap_layout_stamps(addons)


@mutant(kills=["META-008"], source="`metadata.get('paramwrapper_layout', modern)`")
def guesses_the_layout(addons: Any) -> None:
    """An adapter without a stamp is taken for one of the newer layout."""

    def broken(_original: Any, model_path: Any) -> Any:
        fused = "target_parameters" in Path(model_path, "adapter_config.json").read_text(encoding="utf-8")
        text = Path(model_path, "automodel_peft_config.json").read_text(encoding="utf-8")
        return json.loads(text).get("paramwrapper_layout", "peft-0.19.1" if fused else None)

    around(addons, addons.paramwrapper_layout, broken)
