# SPDX-License-Identifier: Apache-2.0
"""Models whose LoRA PEFT itself injected."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.randomness import draw_normal, generator
from spec_tests.builders.trained import ALPHA, RANK, Trained
from spec_tests.harness.export import error_of, save_metadata

_READERS: dict[int, bool] = {}


def config_for(impl: Any, config: Any) -> Any:
    """PEFT's own config, or the same in the trainer's form for an implementation that cannot save with the former.

    Whether it can is the business of ADP-009, and of that clause alone.
    """
    if id(impl) not in _READERS:
        _READERS[id(impl)] = _reads(impl)
    if _READERS[id(impl)]:
        return config
    task = getattr(config.task_type, "value", config.task_type)
    settings = {name: getattr(config, name) for name in ("fan_in_fan_out", "modules_to_save")} | {"task_type": task}
    return impl.peft_config(dim=config.r, alpha=config.lora_alpha, use_dora=config.use_dora, **settings)


def _reads(impl: Any) -> bool:
    import peft

    model = peft.get_peft_model(hf.llama(), peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj"]))
    with tempfile.TemporaryDirectory(prefix="reads-") as directory:
        return error_of(lambda: save_metadata(impl, model, Path(directory), model.peft_config["default"])) is None


@dataclass(frozen=True)
class Injected(Trained):
    """A model whose LoRA PEFT injected; ``settings`` of `peft.LoraConfig` beside rank and alpha."""

    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self, adapters: Mapping[str, Callable[..., Any]]) -> nn.Module:
        """The model as `peft.get_peft_model` returns it."""
        import peft

        del adapters
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return peft.get_peft_model(self.base(), self.peft_config(None))

    def trained(self, adapters: Mapping[str, Callable[..., Any]]) -> nn.Module:
        """The model with everything that PEFT trains far from where it began."""
        model, source = self.build(adapters), generator(0)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                draw_normal(parameter, source, std=0.5)
        return model

    def peft_config(self, make: Any) -> Any:
        """The `peft.LoraConfig` itself."""
        import peft

        del make
        return peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(self.dense), **self.settings)
