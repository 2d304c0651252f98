# SPDX-License-Identifier: Apache-2.0
"""What is saved, by whom, and what real readers make of what is left."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
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
from spec_tests.loading import load

OLD, NEW = 4, 12
OTHERS = {"notes.txt": "mine", "runs/events.out": "theirs"}
"""Files in the directory that are no save's."""
PEERS = "peers"
"""The contender that is `PeftModel.save_pretrained` and transformers' own ``save_pretrained``."""
CHECKPOINTER = "nemo-checkpointer"
"""The contender that is NeMo AutoModel's own ``Checkpointer``, where that is installed or on the path."""
OTHER_PROJECTS = (PEERS, CHECKPOINTER)
ADAPTER, WHOLE = "adapter", "model"
SMALL = 20_000
"""Bytes of a weights file: a model has several."""


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint, and how a contender saves it.

    Attributes:
        name: what the table calls it.
        marker: the file by which readers recognise one.
        live: makes the live model of a number, which all its numbers are.
        save: saves a live model in a directory.
        numbers: reads a directory; the numbers that were found, one where all belongs together.
    """

    name: str
    marker: str
    live: Callable[[int], Any]
    save: Callable[[Any, Path], None]
    numbers: Callable[[Path], set[float]]


def kinds_of(contender: str) -> list[Kind]:
    """What a contender saves: an implementation, as ``--impl`` takes it, `PEERS` or `CHECKPOINTER`."""
    if contender == PEERS:
        return [
            Kind(ADAPTER, "adapter_config.json", _live_of_peft, _save_itself, adapter_numbers),
            Kind(WHOLE, "config.json", live_whole, _save_itself_in_small_files, whole_numbers),
        ]
    if contender == CHECKPOINTER:
        from spec_tests.faults.checkpointer import KINDS  # needs a package of others

        return KINDS
    impl = load(contender)
    kinds = [Kind(ADAPTER, "adapter_config.json", _live_adapter, partial(_save_adapter, impl), adapter_numbers)]
    if impl.save_consolidated:
        kinds.append(Kind(WHOLE, "config.json", live_whole, partial(_save_whole, impl), whole_numbers))
    return kinds


def version_of(contender: str) -> str:
    """The contender and its version, as the table shows them."""
    if contender == PEERS:
        return "peft and transformers"
    if contender == CHECKPOINTER:
        return f"nemo-automodel {version('nemo-automodel')}, Checkpointer"
    return f"{contender} {load(contender).version}"


def _save_itself(live: Any, directory: Path) -> None:
    live.save_pretrained(str(directory))


def _save_itself_in_small_files(live: Any, directory: Path) -> None:
    live.save_pretrained(str(directory), max_shard_size=SMALL)


def _save_whole(impl: Implementation, live: Any, directory: Path) -> None:
    save: Any = impl.save_consolidated
    save(live, directory, max_shard_bytes=SMALL)


def _save_adapter(impl: Implementation, live: Any, directory: Path) -> None:
    config = impl.peft_config(dim=RANK, alpha=live.number, target_modules=list(ATTENTION))
    if impl.save_adapter is not None:
        impl.save_adapter(live, directory, config)
    else:  # the hooks, and the weights as safetensors writes them
        directory.mkdir(parents=True, exist_ok=True)
        save_adapter(impl, live, directory, config)


def filled(live: Any, number: int) -> Any:
    """The model with LoRA, its B all of one number, which it remembers."""
    live.number = number
    with torch.no_grad():
        for name, tensor in live.named_parameters():
            if "lora_B" in name:
                tensor.fill_(number)
    return live


def _live_adapter(number: int) -> Any:
    live = hf.llama()
    apply_dense_lora(live, ATTENTION, RANK, number)
    return filled(live, number)


def _live_of_peft(number: int) -> Any:
    config = peft.LoraConfig(r=RANK, lora_alpha=number, target_modules=list(ATTENTION))
    return filled(peft.get_peft_model(hf.llama(), config), number)


def adapter_numbers(directory: Path) -> set[float]:
    """Those of an adapter, as PEFT reads it."""
    said = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))["lora_alpha"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        read = peft.PeftModel.from_pretrained(hf.llama(), str(directory))
    return {said, *(float(n) for name, t in read.named_parameters() if "lora_B" in name for n in t.unique())}


def live_whole(number: int) -> Any:
    """The model, all of one number."""
    live = hf.llama()
    live.config.mark = number
    with torch.no_grad():
        for tensor in live.parameters():
            tensor.fill_(number)
    return live


def whole_numbers(directory: Path) -> set[float]:
    """Those of a model, as transformers reads it."""
    read, info = transformers.LlamaForCausalLM.from_pretrained(str(directory), output_loading_info=True)
    if any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise ValueError("keys are missing, or too many")
    return {read.config.mark, *(float(number) for tensor in read.parameters() for number in tensor.unique())}
