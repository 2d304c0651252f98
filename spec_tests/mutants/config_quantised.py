# SPDX-License-Identifier: Apache-2.0
"""Faults in the quantisation that config.json tells of (spec/config.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spec_tests.mutants.editing import held, replace
from spec_tests.mutants.editing_content import (
    change_files,
    change_live,
    change_original,
    change_quantised,
    change_stripping,
)
from spec_tests.mutants.registry import mutant


def _quantised(package: Any, dtypes: set[torch.dtype], kind: type = torch.Tensor) -> None:
    """Only these dtypes, of the tensors of that kind, make a model a quantised one."""
    change_quantised(
        package, lambda _right, tensors: any(one.dtype in dtypes for one in tensors if isinstance(one, kind))
    )


@mutant(kills=["CFG-003"], source="NVIDIA-NeMo/Automodel: MXFP4 only, which is uint8")
def takes_only_uint8_for_quantised(addons: Any) -> None:
    """An int8 model comes out without the settings that say how to read it."""
    _quantised(addons, {torch.uint8})


@mutant(kills=["CFG-005"], source="`next(model.parameters()).dtype`, and its like")
def looks_at_parameters_alone(addons: Any) -> None:
    """GPTQ and AWQ keep their tensors in buffers: their settings are dropped."""
    narrow = {torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu}
    _quantised(addons, narrow, nn.Parameter)


@mutant(kills=["CFG-005"], source="`dtype in (torch.int8, torch.uint8)`")
def takes_float8_for_plain_weights(addons: Any) -> None:
    """A float8 model is read without its scales."""
    _quantised(addons, {torch.uint8, torch.int8})


@mutant(kills=["CFG-003", "CFG-005"], source="`config.save_pretrained` after dequantising")
def keeps_quantisation_settings(addons: Any) -> None:
    """Readers quantise the plain weights, or try to unpack them."""
    change_quantised(addons, lambda _right, _tensors: True)


@mutant(kills=["CFG-003"], source="`config.quantization_config = None`")
def writes_null_for_no_quantisation(addons: Any) -> None:
    """Readers ask whether the key is there, and take the model for a quantised one."""
    change_live(addons, lambda content, _model: content.setdefault("quantization_config", None))


@mutant(kills=["CFG-005"], source="`delattr(config, 'quantization_config')`")
def strips_the_top_level_alone(addons: Any) -> None:
    """`text_config.quantization_config` stays, and transformers 5 falls back to it."""
    keys = ("quantization_config", "compression_config")

    def strip(config: Any) -> None:
        for key in keys if not isinstance(config, Mapping) else ():
            vars(config).pop(key, None)

    def shallow(keep: Any, _content: dict[str, Any], quantised: bool) -> Any:
        return keep() if quantised else {key: value for key, value in keep().items() if key not in keys}

    change_stripping(addons, strip, shallow)


@mutant(kills=["CFG-004"], source="a helper that only logs")
def helper_leaves_the_settings(addons: Any) -> None:
    """A caller that strips before saving by itself still has the settings."""
    replace(addons, held(addons, "_maybe_strip_quantization_config"), lambda _model_part: None)


@mutant(kills=["CFG-004"], also=("RANK",), source="NVIDIA-NeMo/Automodel: `pre_save` strips the live config")
def hook_strips_the_live_config(addons: Any) -> None:
    """The ranks' configs differ after the first save."""
    strip = held(addons, "_maybe_strip_quantization_config")

    def change(make: Any, save: Any) -> dict[str, Any]:
        strip(save.model_state.model[0])
        return dict(make(save))

    change_files(addons, change)


@mutant(kills=["CFG-015"], source="`dtype in (torch.int8, torch.uint8)`, taken for all there is")
def takes_packed_integers_for_plain_weights(addons: Any) -> None:
    """A GPTQ model comes out without its settings: int32 weights are read as noise."""
    change_quantised(addons, lambda right, tensors: right() and any(one.dtype.itemsize == 1 for one in tensors))


@mutant(kills=["CFG-015"], source="`not dtype.is_floating_point`")
def takes_wide_integers_for_quantised(addons: Any) -> None:
    """A plain model with an int32 index keeps stale settings, and readers unpack it."""
    wide = {torch.int16, torch.int32, torch.uint32}
    change_quantised(addons, lambda right, tensors: right() or any(one.dtype in wide for one in tensors))


@mutant(kills=["CFG-016"], source="the original, minus `quantization_config`, in any case")
def loses_live_quantisation_for_v4(addons: Any) -> None:
    """An int8 model comes out in the old form without the settings that say how to read it."""
    change_original(addons, lambda read, _path: read(live={}))
