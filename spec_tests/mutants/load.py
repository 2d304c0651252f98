# SPDX-License-Identifier: Apache-2.0
"""Faults that a reload of a whole model shows (spec/load.md, LOAD-003 and LOAD-004)."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from spec_tests.mutants.editing_content import change_saved_dtype
from spec_tests.mutants.editing_whole import change_cast, change_tensors, keep_native_names
from spec_tests.mutants.registry import mutant


@mutant(kills=["LOAD-003"], also=("IDX", "CODE", "POST"), source="`model.model.state_dict()`")
def leaves_out_the_head(addons: Any) -> None:
    """The head is missing in the checkpoint, and transformers makes a random one."""
    change_tensors(addons, lambda tensors: {name: it for name, it in tensors.items() if not name.startswith("lm_head")})


@mutant(kills=["LOAD-003"], source="`model.state_dict()` without the model's `state_dict_adapter`")
def saves_native_names(addons: Any) -> None:
    """The experts have names that transformers does not know: they are random after loading."""
    keep_native_names(addons)


@mutant(kills=["LOAD-004"], source="`model.to(torch.bfloat16)` before saving")
def casts_the_live_model(addons: Any) -> None:
    """Training goes on with bf16 master weights, without a word."""
    original = addons.save_consolidated

    def save_consolidated(model: Any, directory: Any, *, dtype: Any = None, **more: Any) -> Any:
        for part in [model] if isinstance(model, nn.Module) else model:
            for parameter in part.parameters() if dtype is not None else ():
                parameter.data = parameter.data.to(dtype)
        return original(model, directory, dtype=dtype, **more)

    addons.save_consolidated = save_consolidated


@mutant(kills=["LOAD-004"], source="a dtype that reaches the config alone")
def leaves_the_weights_as_they_are(addons: Any) -> None:
    """The config says bfloat16, the files are of twice the size."""
    change_cast(addons, lambda tensor, _dtype: tensor.dtype)


@mutant(kills=["LOAD-004", "CFG-007"], source="a dtype that reaches the weights alone")
def leaves_the_saved_dtype_out_of_the_config(addons: Any) -> None:
    """The config says float32 above bfloat16 weights."""
    change_saved_dtype(addons, lambda name, save: name(dataclasses.replace(save, dtype=None)))
