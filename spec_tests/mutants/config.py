# SPDX-License-Identifier: Apache-2.0
"""Faults in config.json and generation_config.json (spec/config.md, spec/generation.md)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from spec_tests.mutants.editing import held, replace
from spec_tests.mutants.registry import mutant


def _change_live(package: Any, change: Callable[[dict[str, Any], Any], None]) -> None:
    """``change(content, model)`` edits the dict that the live config becomes."""
    original = held(package, "config_content")

    def broken(model: nn.Module, *settings: Any) -> Any:
        content = original(model, *settings)
        if content is not None:
            change(content, model)
        return content

    replace(package, original, broken)


def _change_files(package: Any, change: Callable[..., dict[str, Any]]) -> None:
    """``change(make, save)`` takes the place of the step that works out which file has which content."""
    original = held(package, "json_files")

    def broken(save: Any, *settings: Any) -> dict[str, Any]:
        return change(lambda one: original(one, *settings), save)

    replace(package, original, broken)


def _defaults(config: Any) -> dict[str, Any]:
    return {} if isinstance(config, Mapping) else type(config)().to_dict()


@mutant(kills=["CFG-001", "CFG-002"], source="transformers: `to_json_string(use_diff=True)` taken for all there is")
def writes_only_what_differs_from_the_defaults(addons: Any) -> None:
    """`AutoConfig` cannot tell the model: `model_type` is the class's own, so it is left out."""

    def shortened(content: dict[str, Any], model: Any) -> None:
        defaults = _defaults(model.config)
        for key in [key for key, value in defaults.items() if content.get(key, key) == value]:
            del content[key]

    _change_live(addons, shortened)


@mutant(kills=["CFG-001"], source="a dataclass of known settings")
def leaves_out_settings_that_the_class_lacks(addons: Any) -> None:
    """A setting that a trainer added is gone after training."""

    def shortened(content: dict[str, Any], model: Any) -> None:
        known = {"architectures", "auto_map", "quantization_config", "dtype", *_defaults(model.config)}
        for key in [] if isinstance(model.config, Mapping) else content.keys() - known:
            del content[key]

    _change_live(addons, shortened)


@mutant(kills=["CFG-002"], source="NVIDIA-NeMo/Automodel#1984")
def leaves_out_architectures(addons: Any) -> None:
    """A server refuses the checkpoint: vLLM does not know which class to load."""
    _change_live(addons, lambda content, _model: content.pop("architectures", None))


@mutant(kills=["CFG-002", "CODE-005"], source="`config.auto_map = None`, so that no code of the hub runs")
def leaves_out_the_auto_map(addons: Any) -> None:
    """A model with code of its own cannot be loaded, though the code lies beside it."""
    _change_live(addons, lambda content, _model: content.pop("auto_map", None))


def _saved(part: nn.Module) -> Iterable[Any]:
    return part.state_dict().values()


def _quantised(package: Any, dtypes: set[torch.dtype], asked: Callable[..., Iterable[Any]] = _saved) -> None:
    """Only these dtypes, of the tensors of a part that are asked, make a model a quantised one."""
    holds = held(package, "holds_quantised")
    replace(package, holds, lambda parts: any(one.dtype in dtypes for part in parts for one in asked(part)))


@mutant(kills=["CFG-003"], source="NVIDIA-NeMo/Automodel: MXFP4 only, which is uint8")
def takes_only_uint8_for_quantised(addons: Any) -> None:
    """An int8 model comes out without the settings that say how to read it."""
    _quantised(addons, {torch.uint8})


@mutant(kills=["CFG-005"], source="`next(model.parameters()).dtype`, and its like")
def looks_at_parameters_alone(addons: Any) -> None:
    """GPTQ and AWQ keep their tensors in buffers: their settings are dropped."""
    narrow = {torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu}
    _quantised(addons, narrow, nn.Module.parameters)


@mutant(kills=["CFG-005"], source="`dtype in (torch.int8, torch.uint8)`")
def takes_float8_for_plain_weights(addons: Any) -> None:
    """A float8 model is read without its scales."""
    _quantised(addons, {torch.uint8, torch.int8})


@mutant(kills=["CFG-003", "CFG-005"], source="`config.save_pretrained` after dequantising")
def keeps_quantisation_settings(addons: Any) -> None:
    """Readers quantise the plain weights, or try to unpack them."""
    original = held(addons, "config_content")
    replace(addons, original, lambda model, dtype, _quantised: original(model, dtype, True))


@mutant(kills=["CFG-003"], source="`config.quantization_config = None`")
def writes_null_for_no_quantisation(addons: Any) -> None:
    """Readers ask whether the key is there, and take the model for a quantised one."""
    _change_live(addons, lambda content, _model: content.setdefault("quantization_config", None))


@mutant(kills=["CFG-005"], source="`delattr(config, 'quantization_config')`")
def strips_the_top_level_alone(addons: Any) -> None:
    """`text_config.quantization_config` stays, and transformers 5 falls back to it."""
    keys = held(addons, "_QUANTISATION_KEYS")

    def strip(config: Any) -> None:
        for key in keys if not isinstance(config, Mapping) else ():
            vars(config).pop(key, None)

    replace(addons, held(addons, "_strip"), strip)
    replace(
        addons,
        held(addons, "without_quantisation"),
        lambda content: {key: value for key, value in content.items() if key not in keys},
    )


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

    _change_files(addons, change)


@mutant(kills=["CFG-006"], source="`json.dump(..., default=str)`")
def writes_sets_as_python_prints_them(addons: Any) -> None:
    """A set comes back as the string `{1, 2}`, and an object as its address."""
    addons.hf_config.json_safe = lambda value, *_more: json.loads(json.dumps(value, default=str))


@mutant(kills=["CFG-006"], source="transformers 5: `_encode_special_floats`")
def writes_infinity_for_another_transformers(addons: Any) -> None:
    """A limit of infinity is read back as a dict, or not at all."""
    addons.hf_config._TRANSFORMERS_5 = not addons.hf_config._TRANSFORMERS_5


@mutant(kills=["CFG-006"], source="`TypeError: Object of type function is not JSON serializable`")
def says_not_which_setting_it_is(addons: Any) -> None:
    """The save fails when training is over, and nothing says what to change."""
    original = addons.hf_config.json_safe

    def broken(*settings: Any) -> Any:
        with contextlib.suppress(TypeError):
            return original(*settings)
        # Out here the error comes from no other, whose text would name the setting.
        raise TypeError("Object is not JSON serializable")

    addons.hf_config.json_safe = broken


@mutant(kills=["CFG-007", "LOAD-004"], source="`config.to_json_string()`")
def leaves_the_dtype_that_the_config_says(addons: Any) -> None:
    """bf16 weights are loaded as float32, or the reverse."""
    replace(addons, held(addons, "with_dtype"), lambda content, _dtype: content)


@mutant(kills=["CFG-008", "CFG-009", "GEN-003"], source="a keyword that nobody passes on")
def ignores_v4_compatible(addons: Any) -> None:
    """The rope settings are read as defaults by transformers 4."""
    _change_files(addons, lambda make, save: make(dataclasses.replace(save, v4_compatible=False)))


@mutant(kills=["CFG-008", "CFG-011"], source="`shutil.copy` of the original")
def keeps_quantisation_in_the_original(addons: Any) -> None:
    """The original was MXFP4, the saved weights are bf16, and readers unpack them."""

    def whole(path: str, name: str, *_settings: Any, **_named: Any) -> dict[str, Any]:
        return dict(json.loads((Path(path) / name).read_text(encoding="utf-8")))

    replace(addons, held(addons, "original_content"), whole)


@mutant(kills=["CFG-008"], source="the old form in place of the new one")
def loses_the_live_config_for_v4(addons: Any) -> None:
    """What training changed in the config is nowhere."""
    _change_files(addons, lambda make, save: {name: it for name, it in make(save).items() if name != "config.v5.json"})


@mutant(kills=["CFG-009"], source="`if os.path.exists(original): ... else: config.save_pretrained`")
def writes_the_new_form_under_the_old_name(addons: Any) -> None:
    """Without a local original transformers 4 gets the new form, and a wrong `rope_theta`."""

    def change(make: Any, save: Any) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            return dict(make(save))
        return dict(make(dataclasses.replace(save, v4_compatible=False)))

    _change_files(addons, change)


@mutant(kills=["CFG-010"], source="`os.path.isdir(original_model_path)`")
def takes_the_directory_for_the_file(addons: Any) -> None:
    """A file that a model lacks is taken to be there."""
    replace(addons, held(addons, "_config_exists"), lambda path, _name: path is not None and Path(path).is_dir())


@mutant(kills=["CFG-012"], source="NVIDIA-NeMo/Automodel#1574")
def asks_every_config_for_its_dict(addons: Any) -> None:
    """`FrozenDict` has no `to_dict`: a diffusion model cannot be saved."""
    _change_live(addons, lambda _content, model: model.config.to_dict())


@mutant(kills=["CFG-013", "GEN-004"], source="`getattr(model, 'config', {})`")
def writes_an_empty_config(addons: Any) -> None:
    """Of a module that is no model of transformers readers find a config.json that says nothing."""
    original = held(addons, "config_content")
    replace(addons, original, lambda *settings: original(*settings) or {})


@mutant(kills=["CFG-014"], source="`json.dump(vars(config))`")
def keeps_the_name_or_path(addons: Any) -> None:
    """The path of a home directory is published with the model."""
    _change_live(addons, lambda content, model: content.update(_name_or_path=model.config._name_or_path))


def _change_generation(package: Any, change: Callable[[Any, Any], Any]) -> None:
    """The content of the generation config, None without one, becomes ``change(content, model)``."""
    original = held(package, "generation_content")
    replace(package, original, lambda model: change(original(model), model))


@mutant(kills=["GEN-001", "GEN-002"], source="`GenerationConfig.from_model_config`")
def makes_generation_settings_from_the_config(addons: Any) -> None:
    """`generate` takes other defaults than the trained model has."""

    def change(content: Any, model: Any) -> Any:
        if content is None or not hasattr(model, "config"):
            return content
        return transformers.GenerationConfig.from_model_config(model.config).to_dict()

    _change_generation(addons, change)


@mutant(kills=["GEN-002"], source="transformers#29988")
def saves_generation_settings_by_save_pretrained(addons: Any) -> None:
    """The save fails over a temperature that is not used, when training is over."""

    def change(content: Any, model: Any) -> Any:
        with tempfile.TemporaryDirectory() as directory:
            if content is not None:
                model.generation_config.save_pretrained(directory)
        return content

    _change_generation(addons, change)


@mutant(kills=["GEN-003"], source="only config.json thought of")
def leaves_generation_settings_in_the_new_form(addons: Any) -> None:
    """Beside the old config transformers 4 reads what version 5 wrote."""

    def change(make: Any, save: Any) -> dict[str, Any]:
        files = dict(make(save))
        live = files.pop("generation_config.v5.json", None)
        return files if live is None else {**files, "generation_config.json": live}

    _change_files(addons, change)


@mutant(kills=["GEN-004"], source="`if model.config is not None:` around both")
def writes_generation_settings_beside_a_config_alone(addons: Any) -> None:
    """A module with a generation config and no other loses it."""
    _change_generation(addons, lambda content, model: content if hasattr(model, "config") else None)
