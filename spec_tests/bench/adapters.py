# SPDX-License-Identifier: Apache-2.0
"""Rows about `save_adapter`, beside the least that such a save has to do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file

import addons
from spec_tests.bench import models
from spec_tests.bench.pairing import Contender, in_turn
from spec_tests.bench.rows import Figures, Places, Row, timed
from spec_tests.bench.written import size, sync, tensors, writable
from spec_tests.implementations.base import trainer_peft_config


def experts_row(places: Places, v4_compatible: bool) -> Figures:
    """A large mixture of experts: `save_adapter` beside the conversion of its tensors and one `save_file`."""
    model = models.experts(layers=48, of_each=128, hidden=384, inter=288)
    models.make_real(model, [p for p in model.parameters() if p.requires_grad], torch.bfloat16)
    adapter: Any = addons.Qwen3MoeStateDictAdapter()
    model.state_dict_adapter = adapter
    native = addons.ModelState(model, is_peft=True).state_dict()
    config = trainer_peft_config(dim=models.RANK, alpha=models.ALPHA)

    def mine(directory: Path) -> None:
        addons.save_adapter(model, directory, config, v4_compatible=v4_compatible)
        sync(directory)

    def theirs(directory: Path) -> None:
        converted = writable(adapter.to_hf(dict(native), v4_compatible=v4_compatible).items())
        save_file(converted, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        sync(directory)

    return _measure(mine, theirs, places)


def peft_row(places: Places) -> Figures:
    """LoRA that PEFT put into a model: `save_adapter` beside PEFT's own save."""
    base = models.real_llama(layers=20, hidden=512, inter=1408, vocab=2000)
    config = peft.LoraConfig(r=64, lora_alpha=128, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)

    def mine(directory: Path) -> None:
        addons.save_adapter(model, directory, config)
        sync(directory)

    def theirs(directory: Path) -> None:
        # False: it would else ask the hub for the base model's vocabulary, which is no work of saving.
        model.save_pretrained(str(directory), save_embedding_layers=False)
        sync(directory)

    return _measure(mine, theirs, places)


def _measure(mine: Any, theirs: Any, places: Places) -> Figures:
    sizes: list[int] = []

    def look(directory: Path) -> dict[str, Any]:
        sizes.append(size(directory))
        return tensors(directory)

    paired = in_turn(Contender(mine, look=look), Contender(theirs, look=look), places.fast)
    return timed(paired, bytes=sizes[0])


_LEAST = "conversion and `save_file` of the same tensors"
ROWS = (
    Row(
        "save_adapter-experts-fused",
        "`save_adapter`, 48 layers x 128 experts, fused",
        _LEAST,
        1.3,
        partial(experts_row, v4_compatible=False),
    ),
    Row(
        "save_adapter-experts-v4",
        "`save_adapter`, 48 layers x 128 experts, a pair of tensors an expert",
        _LEAST,
        1.3,
        partial(experts_row, v4_compatible=True),
    ),
    Row("save_adapter-peft", "`save_adapter` of a PEFT-injected Llama", "`PeftModel.save_pretrained`", 1.2, peft_row),
)
