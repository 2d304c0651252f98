# SPDX-License-Identifier: Apache-2.0
"""A state-dict adapter that calls modules otherwise than the trainer does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spec_tests.harness.export import PREFIX

if TYPE_CHECKING:
    from torch import Tensor


class RenamingAdapter:
    """Calls every segment ``old`` of a module's name ``new``, in keys and in target names alike.

    For ``v4_compatible`` the name has ``_4`` behind it.
    """

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new  # no super().__init__(): what a trainer's own class wants is not known

    def to_hf(self, state_dict: Mapping[str, Tensor], v4_compatible: bool = False, **_kwargs: Any) -> dict[str, Tensor]:
        """Convert keys, with or without PEFT's prefix."""
        return {self._key(key, v4_compatible): tensor for key, tensor in state_dict.items()}

    def map_peft_target_module_to_hf(self, name: str, *, v4_compatible: bool = False) -> str:
        """Convert the name of a module that carries LoRA."""
        new = f"{self.new}_4" if v4_compatible else self.new
        return ".".join(new if segment == self.old else segment for segment in name.split("."))

    def _key(self, key: str, v4_compatible: bool) -> str:
        prefix = PREFIX if key.startswith(PREFIX) else ""
        module, end, tensor = key.removeprefix(prefix).rpartition(".lora_" if ".lora_" in key else ".")
        return f"{prefix}{self.map_peft_target_module_to_hf(module, v4_compatible=v4_compatible)}{end}{tensor}"


def renaming_adapter(base: type, old: str, new: str) -> RenamingAdapter:
    """A `RenamingAdapter` that is also an instance of ``base``, a trainer's own class of adapters."""
    if base is object:
        return RenamingAdapter(old, new)
    adapter: RenamingAdapter = type("RenamingAdapterOfTheTrainer", (RenamingAdapter, base), {})(old, new)
    return adapter
