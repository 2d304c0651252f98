# SPDX-License-Identifier: Apache-2.0
"""Save the LoRA of a torchtitan 0.3 Llama as an adapter that PEFT loads.

torchtitan trains LoRA (``lora_a``, ``lora_b``), and its conversion to Hugging Face's names drops it without a word.
This file shows what a trainer with modules and names of its own needs: a view of its LoRA, and an object with
``to_hf``. Copy it, and `addons` beside it (addons/VENDORING.md); then call `save_lora` where you save a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from torch import nn

from addons import save_adapter  # from your_project.checkpoint_addons import save_adapter


@dataclass(frozen=True)
class LoraSettings:
    """What `save_adapter` asks of a trainer's own settings: the rank, and the alpha of alpha / rank."""

    dim: int
    alpha: float
    use_dora: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For ``automodel_peft_config.json``."""
        return asdict(self)


def save_lora(
    model: nn.Module, adapter: Any, directory: str, settings: LoraSettings, original: str, tokenizer: Any = None
) -> None:
    """Save the LoRA of a model. Every rank calls it; rank 0 gathers and writes.

    Args:
        model: as torchtitan trains it, sharded or not.
        adapter: its ``Llama3StateDictAdapter``, which knows the names.
        directory: where the adapter goes.
        settings: of the ``LoRAConverter``.
        original: directory of the base model, in Hugging Face's form.
        tokenizer: saved along, when given.

    Raises:
        ValueError: a module has LoRA and no counterpart in the Hugging Face model.
    """
    view = _View(model, adapter, transformers.AutoConfig.from_pretrained(original))
    save_adapter(view, directory, settings, original_model_path=original, tokenizer=tokenizer)


class _View(nn.Module):
    """The modules with LoRA, under the names ``lora_A`` and ``lora_B``; the tensors are the live ones."""

    def __init__(self, model: nn.Module, adapter: Any, config: Any) -> None:
        super().__init__()
        self.config = config
        self.state_dict_adapter = _HfNames(adapter, config)
        for name, module in model.named_modules():
            if hasattr(module, "lora_a") and hasattr(module, "lora_b"):
                *path, last = name.split(".")
                place: nn.Module = self
                for segment in path:
                    if not hasattr(place, segment):
                        place.add_module(segment, nn.Module())
                    place = place.get_submodule(segment)
                place.add_module(last, _site(module))


def _site(module: Any) -> nn.Module:
    site = nn.Module()
    site.scale = module._lora_scaling
    for name, matrix in (("lora_A", module.lora_a), ("lora_B", module.lora_b)):
        held = nn.Module()
        held.weight = matrix.weight
        site.add_module(name, held)
    return site


class _HfNames:
    """The conversion of native LoRA tensors: names of modules, and the order of rows of queries and keys."""

    _LORA = re.compile(r"(?P<prefix>base_model\.model\.)?(?P<module>.+)\.(?P<matrix>lora_[AB]\.weight)")

    def __init__(self, adapter: Any, config: Any) -> None:
        self._names = {own: hf for hf, own in adapter.from_hf_map.items() if own is not None}
        self._permute, self._config = adapter._permute, config

    def to_hf(self, state_dict: Mapping[str, torch.Tensor], **_options: Any) -> dict[str, torch.Tensor]:
        """The tensors under Hugging Face's names; ``lora_B`` of queries and keys as Hugging Face rotates them."""
        return dict(self._converted(name, tensor) for name, tensor in state_dict.items())

    def _converted(self, name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        found = self._LORA.fullmatch(name)
        number = re.search(r"\d+", found["module"]) if found else None
        native = re.sub(r"\d+", "{}", found["module"], count=1) + ".weight" if found else name
        if found is None or native not in self._names:
            raise ValueError(
                f"{name!r} must be LoRA of a module that the Hugging Face model has: train wq, wk, wv apart"
            )
        module = self._names[native].removesuffix(".weight").format(number[0] if number else "")
        heads = {"q_proj": self._config.num_attention_heads, "k_proj": self._config.num_key_value_heads}
        if found["matrix"].startswith("lora_B") and (rows := heads.get(module.rpartition(".")[2])):
            tensor = self._permute(tensor, rows, *tensor.shape)
        return f"{found['prefix'] or ''}{module}.{found['matrix']}", tensor
