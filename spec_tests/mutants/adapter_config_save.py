# SPDX-License-Identifier: Apache-2.0
"""Faults of `save_adapter` itself: its hooks are right (spec/adapter_config.md, ADP-019 and ADP-024)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from spec_tests.mutants.editing_adapter import change_conversion, fused_form, write_weights_with
from spec_tests.mutants.editing_saving import (
    change_agreement_in_whole_saves,
    change_rank_zeros_step_in_whole_saves,
    forget,
    is_rank_zero,
)
from spec_tests.mutants.registry import mutant


@mutant(kills=["ADP-019"], also=("RANK",), source="NVIDIA-NeMo/Automodel#3096: a keyword that is not passed on")
def saves_without_the_pipeline_group(addons: Any) -> None:
    """Ranks that hold the stages of one model cannot save it in one call."""
    forget(addons, "pp_group")


@mutant(kills=["ADP-019"], also=("RANK",), source="NVIDIA-NeMo/Automodel#3108: a keyword that is not passed on")
def saves_without_the_process_group(addons: Any) -> None:
    """A save on a group of its own waits for ranks that take no part."""
    forget(addons, "process_group")


@mutant(kills=["ADP-019"], source="NVIDIA-NeMo/Automodel#1532: a keyword that is not passed on")
def saves_without_v4_compatibility(addons: Any) -> None:
    """An adapter meant for vLLM comes with fused experts, which vLLM does not read."""
    forget(addons, "v4_compatible")


@mutant(kills=["ADP-019"], source="NVIDIA-NeMo/Automodel#1532: a keyword that only one of two calls gets")
def converts_the_weights_without_v4_compatibility(addons: Any) -> None:
    """A save of experts one by one fails, since config and weights are made in two forms."""
    form = fused_form(addons)
    change_conversion(addons, lambda original, native, parts, _form: original(native, parts, form))


@mutant(kills=["ADP-019"], source="buffers that are allocated for a gather and never filled")
def writes_weights_that_are_all_zero(addons: Any) -> None:
    """The adapter loads without a complaint and does nothing."""

    def broken(original: Any, *arguments: Any) -> dict[str, Any]:
        return {name: torch.zeros_like(tensor) for name, tensor in original(*arguments).items()}

    change_conversion(addons, broken)


@mutant(kills=["ADP-019"], also=("RANK",), source="a check before the collective")
def fails_alone_before_the_save_begins(addons: Any) -> None:
    """A rank with a wrong argument fails at once, and all others wait for the group's timeout."""

    def broken(original: Any, group: Any, step: Any) -> Any:
        value = step()
        return original(group, lambda: value)

    change_agreement_in_whole_saves(addons, broken)


@mutant(kills=["ADP-019"], also=("RANK",), source="instructlab#566: no barrier behind the write")
def returns_before_the_weights_are_there(addons: Any) -> None:
    """On a slow disk other ranks go on to read or move an adapter that is not there yet."""

    def broken(_original: Any, group: Any, step: Any) -> Any:
        if not is_rank_zero(addons, group):
            return None
        if dist.is_initialized():
            time.sleep(0.3)
        return step()

    change_rank_zeros_step_in_whole_saves(addons, broken)


@mutant(kills=["ADP-019"], also=("TOK",), source="hooks that every rank calls with a group of its own")
def leaves_the_tokenizer_out(addons: Any) -> None:
    """The adapter comes without the tokenizer it was trained with."""
    forget(addons, "tokenizer")


def _write(package: Any, metadata: dict[str, str] | None) -> None:
    def write(path: Path, tensors: dict[str, Any]) -> None:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)

    write_weights_with(package, write)


@mutant(kills=["ADP-024"], source="`safetensors.torch.save_file(tensors, path)`, whose metadata is optional")
def leaves_the_adapters_header_bare(addons: Any) -> None:
    """Readers that choose the framework by the header refuse the file, or take it for none of theirs."""
    _write(addons, None)


@mutant(kills=["ADP-024"], source="a header that says who wrote the file, and no more")
def signs_the_adapters_header_and_forgets_the_format(addons: Any) -> None:
    """The header is there, and its format is not: readers fail as with none."""
    _write(addons, {"created_by": "trainer"})
