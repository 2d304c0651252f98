# SPDX-License-Identifier: Apache-2.0
"""Faults in config.json (spec/config.md)."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from spec_tests.mutants.editing_content import (
    change_content,
    change_counted_dtypes,
    change_live,
    change_odd_numbers,
    change_plain,
    change_said,
)
from spec_tests.mutants.registry import mutant

# Without these readers could not tell the class, and other clauses would fail.
_KEPT = {"architectures", "auto_map", "dtype", "model_type", "quantization_config", "torch_dtype"}


def _defaults(config: Any) -> dict[str, Any]:
    return {} if isinstance(config, Mapping) else type(config)().to_dict()


@mutant(
    kills=["CFG-001", "CFG-002", "CFG-021"],
    source="transformers: `to_json_string(use_diff=True)` taken for all there is",
)
def writes_only_what_differs_from_the_defaults(addons: Any) -> None:
    """`AutoConfig` cannot tell the model: `model_type` is the class's own, so it is left out."""

    def shortened(content: dict[str, Any], model: Any) -> None:
        defaults = _defaults(model.config)
        for key in [key for key, value in defaults.items() if content.get(key, key) == value]:
            del content[key]

    change_live(addons, shortened)


@mutant(kills=["CFG-001"], source="a dataclass of known settings")
def leaves_out_settings_that_the_class_lacks(addons: Any) -> None:
    """A setting that a trainer added is gone after training."""

    def shortened(content: dict[str, Any], model: Any) -> None:
        known = {"architectures", "auto_map", "quantization_config", "dtype", *_defaults(model.config)}
        for key in [] if isinstance(model.config, Mapping) else content.keys() - known:
            del content[key]

    change_live(addons, shortened)


@mutant(kills=["CFG-002"], source="NVIDIA-NeMo/Automodel#1984")
def leaves_out_architectures(addons: Any) -> None:
    """A server refuses the checkpoint: vLLM does not know which class to load."""
    change_live(addons, lambda content, _model: content.pop("architectures", None))


@mutant(kills=["CFG-002", "CODE-005"], source="`config.auto_map = None`, so that no code of the hub runs")
def leaves_out_the_auto_map(addons: Any) -> None:
    """A model with code of its own cannot be loaded, though the code lies beside it."""
    change_live(addons, lambda content, _model: content.pop("auto_map", None))


@mutant(kills=["CFG-006"], source="`json.dump(..., default=str)`")
def writes_sets_as_python_prints_them(addons: Any) -> None:
    """A set comes back as the string `{1, 2}`, and an object as its address."""
    change_plain(addons, lambda _plain, value, _where: json.loads(json.dumps(value, default=str)))


@mutant(kills=["CFG-006"], source="transformers 5: `_encode_special_floats`")
def writes_infinity_for_another_transformers(addons: Any) -> None:
    """A limit of infinity is read back as a dict, or not at all."""

    def tagged(value: float) -> Any:
        return {"__float__": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}

    reads_tags = int(transformers.__version__.partition(".")[0]) >= 5
    change_odd_numbers(addons, (lambda value: value) if reads_tags else tagged)


@mutant(kills=["CFG-006"], source="`TypeError: Object of type function is not JSON serializable`")
def says_not_which_setting_it_is(addons: Any) -> None:
    """The save fails when training is over, and nothing says what to change."""

    def change(plain: Any, _value: Any, _where: str) -> Any:
        with contextlib.suppress(TypeError):
            return plain()
        # Out here the error comes from no other, whose text would name the setting.
        raise TypeError("Object is not JSON serializable")

    change_plain(addons, change)


@mutant(kills=["CFG-007", "LOAD-004"], source="`config.to_json_string()`")
def leaves_the_dtype_that_the_config_says(addons: Any) -> None:
    """bf16 weights are loaded as float32, or the reverse."""
    change_said(addons, lambda say, _tied: say(dtype=None))


@mutant(kills=["CFG-012"], source="NVIDIA-NeMo/Automodel#1574")
def asks_every_config_for_its_dict(addons: Any) -> None:
    """`FrozenDict` has no `to_dict`: a diffusion model cannot be saved."""
    change_live(addons, lambda _content, model: model.config.to_dict())


@mutant(kills=["CFG-013", "GEN-004"], source="`getattr(model, 'config', {})`")
def writes_an_empty_config(addons: Any) -> None:
    """Of a module that is no model of transformers readers find a config.json that says nothing."""
    change_content(addons, lambda make, _model: make() or {})


@mutant(kills=["CFG-014"], source="`json.dump(vars(config))`")
def keeps_the_name_or_path(addons: Any) -> None:
    """The path of a home directory is published with the model."""
    change_live(addons, lambda content, model: content.update(_name_or_path=model.config._name_or_path))


@mutant(kills=["CFG-018"], source="`config.architectures or [type(model).__name__]`")
def keeps_the_class_that_the_config_names(addons: Any) -> None:
    """A server loads the causal model that the classifier was made of, and finds no head for it."""

    def change(content: dict[str, Any], model: Any) -> None:
        said = None if isinstance(model.config, Mapping) else model.config.architectures
        content["architectures"] = said or content.get("architectures")

    change_live(addons, change)


@mutant(kills=["CFG-019"], source="`content.pop('_name_or_path')`")
def keeps_the_paths_of_sub_configs(addons: Any) -> None:
    """The path of a home directory is published within `text_config`."""

    def change(content: dict[str, Any], model: Any) -> None:
        for name, inner in content.items():
            if isinstance(inner, dict) and hasattr(getattr(model.config, name, None), "_name_or_path"):
                inner["_name_or_path"] = getattr(model.config, name)._name_or_path

    change_live(addons, change)


@mutant(kills=["CFG-020"], source="the dtype of most elements, whatever it is")
def names_a_dtype_that_nothing_computes_in(addons: Any) -> None:
    """`from_pretrained` fails: there is no storage object for float8."""

    def counted(tensors: list[torch.Tensor]) -> Any:
        floats = [one for one in tensors if one.is_floating_point()]
        return Counter({str(one.dtype).removeprefix("torch."): one.numel() for one in floats})

    change_counted_dtypes(addons, counted)


def _drop_defaults(content: dict[str, Any], config: Any) -> None:
    defaults = _defaults(config)
    for key in content.keys() & defaults.keys() - _KEPT:
        if content[key] == defaults[key]:
            del content[key]


@mutant(kills=["CFG-021"], source="transformers: `config.save_pretrained` writes the difference")
def leaves_out_what_the_class_has_as_default(addons: Any) -> None:
    """A release with another default for `rms_norm_eps` computes something else."""
    change_live(addons, lambda content, model: _drop_defaults(content, model.config))


@mutant(kills=["CFG-021"], source="transformers: `to_diff_dict` of the sub-configs")
def leaves_out_defaults_of_sub_configs(addons: Any) -> None:
    """As for the whole, for the text model inside a vision model."""

    def change(content: dict[str, Any], model: Any) -> None:
        for name, inner in content.items():
            if isinstance(inner, dict) and hasattr(getattr(model.config, name, None), "to_dict"):
                _drop_defaults(inner, getattr(model.config, name))

    change_live(addons, change)
