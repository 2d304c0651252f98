# SPDX-License-Identifier: Apache-2.0
"""What is saved, by whom, and what real readers make of what is left."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from spec_tests.builders import hf
from spec_tests.builders.lora import apply_dense_lora
from spec_tests.builders.trained import ATTENTION, RANK
from spec_tests.harness.export import save_adapter
from spec_tests.implementations.base import Implementation

OLD, NEW = 4, 12
OTHERS = {"notes.txt": "mine", "runs/events.out": "theirs"}
"""Files in the directory that are no save's."""
PEERS = "peers"
"""The contender that is `PeftModel.save_pretrained` and transformers' own ``save_pretrained``."""
_SMALL = 20_000  # bytes of a weights file: a model has several


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint.

    Attributes:
        name: what the table calls it.
        marker: the file by which readers recognise one.
        live: makes the live model of a number, which all its numbers are.
        numbers: reads a directory; the numbers that were found, one where all belongs together.
    """

    name: str
    marker: str
    live: Callable[[Implementation | None, int], Any]
    numbers: Callable[[Path], set[float]]


def saving(kind: Kind, impl: Implementation | None, directory: Path) -> Callable[[Any], None]:
    """The save of a live model by an implementation; by the peers where there is none."""
    if impl is None:
        more = {} if kind is ADAPTER else {"max_shard_size": _SMALL}
        return lambda live: live.save_pretrained(str(directory), **more)
    if kind is WHOLE:
        save: Any = impl.save_consolidated
        return lambda live: save(live, directory, max_shard_bytes=_SMALL)
    return lambda live: _save_adapter(impl, live, directory)


def kinds_of(impl: Implementation | None) -> list[Kind]:
    """What an implementation saves."""
    return [ADAPTER, WHOLE] if impl is None or impl.save_consolidated else [ADAPTER]


def _save_adapter(impl: Implementation, live: Any, directory: Path) -> None:
    config = impl.peft_config(dim=RANK, alpha=live.number, target_modules=list(ATTENTION))
    if impl.save_adapter is not None:
        impl.save_adapter(live, directory, config)
    else:  # the hooks, and the weights as safetensors writes them
        directory.mkdir(parents=True, exist_ok=True)
        save_adapter(impl, live, directory, config)


def _live_adapter(impl: Implementation | None, number: int) -> Any:
    live: Any = hf.llama()
    if impl is None:
        live = peft.get_peft_model(live, peft.LoraConfig(r=RANK, lora_alpha=number, target_modules=list(ATTENTION)))
    else:
        apply_dense_lora(live, ATTENTION, RANK, number)
    live.number = number
    with torch.no_grad():
        for name, tensor in live.named_parameters():
            if "lora_B" in name:
                tensor.fill_(number)
    return live


def _adapter_numbers(directory: Path) -> set[float]:
    said = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))["lora_alpha"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        read = peft.PeftModel.from_pretrained(hf.llama(), str(directory))
    return {said, *(float(n) for name, t in read.named_parameters() if "lora_B" in name for n in t.unique())}


def _live_whole(_impl: Implementation | None, number: int) -> Any:
    live = hf.llama()
    live.config.mark = number
    with torch.no_grad():
        for tensor in live.parameters():
            tensor.fill_(number)
    return live


def _whole_numbers(directory: Path) -> set[float]:
    read, info = transformers.LlamaForCausalLM.from_pretrained(str(directory), output_loading_info=True)
    if any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise ValueError("keys are missing, or too many")
    return {read.config.mark, *(float(number) for tensor in read.parameters() for number in tensor.unique())}


ADAPTER = Kind("adapter", "adapter_config.json", _live_adapter, _adapter_numbers)
WHOLE = Kind("model", "config.json", _live_whole, _whole_numbers)
