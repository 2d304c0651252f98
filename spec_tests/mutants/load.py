# SPDX-License-Identifier: Apache-2.0
"""Faults that a reload of a whole model shows (spec/load.md, LOAD-003 and LOAD-004)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from spec_tests.mutants.editing import held, replace
from spec_tests.mutants.registry import mutant


def _change_tensors(package: Any, change: Callable[..., dict[str, torch.Tensor]]) -> None:
    """``change(tensors, model_state, dtype, v4_compatible)`` takes the place of the choice of tensors."""
    original = held(package, "tensors_to_save")
    replace(package, original, lambda *settings: change(original, *settings))


@mutant(kills=["LOAD-003"], also=("IDX", "CODE", "POST"), source="`model.model.state_dict()`")
def leaves_out_the_head(addons: Any) -> None:
    """The head is missing in the checkpoint, and transformers makes a random one."""

    def change(make: Any, *settings: Any) -> dict[str, torch.Tensor]:
        return {name: it for name, it in make(*settings).items() if not name.startswith("lm_head")}

    _change_tensors(addons, change)


@mutant(kills=["LOAD-003"], source="`model.state_dict()` without the model's `state_dict_adapter`")
def saves_native_names(addons: Any) -> None:
    """The experts have names that transformers does not know: they are random after loading."""
    replace(addons, held(addons, "state_dict_adapter"), lambda _parts: None)


@mutant(kills=["LOAD-004"], source="`model.to(torch.bfloat16)` before saving")
def casts_the_live_model(addons: Any) -> None:
    """Training goes on with bf16 master weights, without a word."""

    def change(make: Any, state: Any, dtype: torch.dtype | None, v4_compatible: bool) -> dict[str, torch.Tensor]:
        for _, parameter in _parameters(state.model) if dtype is not None else ():
            parameter.data = parameter.data.to(dtype)
        return dict(make(state, dtype, v4_compatible))

    _change_tensors(addons, change)


def _parameters(parts: list[nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for part in parts:
        yield from part.named_parameters()


@mutant(kills=["LOAD-004"], source="a dtype that reaches the config alone")
def leaves_the_weights_as_they_are(addons: Any) -> None:
    """The config says bfloat16, the files are of twice the size."""
    _change_tensors(addons, lambda make, state, _dtype, v4_compatible: make(state, None, v4_compatible))


@mutant(kills=["LOAD-004", "CFG-007"], source="a dtype that reaches the weights alone")
def leaves_the_saved_dtype_out_of_the_config(addons: Any) -> None:
    """The config says float32 above bfloat16 weights."""
    original = held(addons, "saved_dtype")
    replace(addons, original, lambda save, views: original(dataclasses.replace(save, dtype=None), views))
