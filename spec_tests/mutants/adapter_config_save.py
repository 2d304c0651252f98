# SPDX-License-Identifier: Apache-2.0
"""Faults of `save_adapter` itself: its hooks are right (spec/adapter_config.md, ADP-019)."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
import torch.distributed as dist

from spec_tests.mutants.editing import held, replace
from spec_tests.mutants.registry import mutant


def _forget(package: Any, keyword: str) -> None:
    """`save_adapter` works as if ``keyword`` had not been given."""
    original = package.save_adapter

    @functools.wraps(original)
    def broken(*args: Any, **kwargs: Any) -> None:
        kwargs.pop(keyword, None)
        original(*args, **kwargs)

    replace(package, original, broken)


@mutant(kills=["ADP-019"], also=("RANK",), source="NVIDIA-NeMo/Automodel#3096: a keyword that is not passed on")
def saves_without_the_pipeline_group(addons: Any) -> None:
    """Ranks that hold the stages of one model cannot save it in one call."""
    _forget(addons, "pp_group")


@mutant(kills=["ADP-019"], also=("RANK",), source="NVIDIA-NeMo/Automodel#3108: a keyword that is not passed on")
def saves_without_the_process_group(addons: Any) -> None:
    """A save on a group of its own waits for ranks that take no part."""
    _forget(addons, "process_group")


@mutant(kills=["ADP-019"], source="NVIDIA-NeMo/Automodel#1532: a keyword that is not passed on")
def saves_without_v4_compatibility(addons: Any) -> None:
    """An adapter meant for vLLM comes with fused experts, which vLLM does not read."""
    _forget(addons, "v4_compatible")


@mutant(kills=["ADP-019"], source="NVIDIA-NeMo/Automodel#1532: a keyword that only one of two calls gets")
def converts_the_weights_without_v4_compatibility(addons: Any) -> None:
    """A save of experts one by one fails, since config and weights are made in two forms."""
    original = addons.save.saved_tensors
    addons.save.saved_tensors = lambda native, parts, **_form: original(native, parts)


@mutant(kills=["ADP-019"], source="buffers that are allocated for a gather and never filled")
def writes_weights_that_are_all_zero(addons: Any) -> None:
    """The adapter loads without a complaint and does nothing."""
    original = addons.save.saved_tensors

    def broken(*args: Any, **form: bool) -> dict[str, Any]:
        return {name: torch.zeros_like(tensor) for name, tensor in original(*args, **form).items()}

    addons.save.saved_tensors = broken


@mutant(kills=["ADP-019"], also=("RANK",), source="a check before the collective")
def fails_alone_before_the_save_begins(addons: Any) -> None:
    """A rank with a wrong argument fails at once, and all others wait for the group's timeout."""
    addons.save.everywhere = lambda step, _group: step()


@mutant(kills=["ADP-019"], also=("RANK",), source="instructlab#566: no barrier behind the write")
def returns_before_the_weights_are_there(addons: Any) -> None:
    """On a slow disk other ranks go on to read or move an adapter that is not there yet."""

    def broken(step: Any, group: Any) -> None:
        if held(addons, "is_rank_zero")(group):
            if dist.is_initialized():
                time.sleep(0.3)
            step()

    addons.save.on_rank_zero = broken


@mutant(kills=["ADP-019"], also=("TOK",), source="hooks that every rank calls with a group of its own")
def leaves_the_tokenizer_out(addons: Any) -> None:
    """The adapter comes without the tokenizer it was trained with."""
    _forget(addons, "tokenizer")
