# SPDX-License-Identifier: Apache-2.0
"""The contents of ``config.json`` and ``generation_config.json``: of the live model, or of the original one.

Everything is worked out on a copy: a save that edited the live config would do so on rank 0 only.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn

from .files import write_text
from .json_content import json_safe, json_text
from .lora_sites import clean_named_tensors, unwrapped

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
V5_NAMES = {CONFIG: "config.v5.json", GENERATION_CONFIG: "generation_config.v5.json"}

_QUANTISATION_KEYS = ("quantization_config", "compression_config")
# Eight bits or fewer an element, whatever the number format: nobody trains or saves plain weights in these.
_QUANTISED = re.compile(r"torch\.(u?int[1-8]|q.+|bits.+|float[48]_.+)")
_TRANSFORMERS_5 = int(transformers.__version__.partition(".")[0]) >= 5


def holds_quantised(parts: Iterable[nn.Module]) -> bool:
    """Whether a parameter or persistent buffer of this rank's parts has a quantised dtype (clause CFG-003)."""
    return any(_QUANTISED.fullmatch(str(tensor.dtype)) for part in parts for _, tensor in clean_named_tensors(part))


def floating_dtypes(parts: Iterable[nn.Module]) -> dict[str, int]:
    """Floating-point dtype (as configs spell it) -> number of elements, over the saved tensors of the parts."""
    found: dict[str, int] = {}
    for part in parts:
        for _, tensor in clean_named_tensors(part):
            if tensor.is_floating_point():
                name = short_name(tensor.dtype)
                found[name] = found.get(name, 0) + tensor.numel()
    return found


def config_content(model: nn.Module, dtype: str | None, quantised: bool) -> dict[str, Any] | None:
    """The model's config as the content of ``config.json``; None when the model has none.

    Args:
        model: the model or its first part, free of wrappers.
        dtype: dtype of the saved weights as configs spell it; None leaves what the config says.
        quantised: whether saved tensors are quantised; if not, no quantisation settings are written.

    Raises:
        TypeError: a value has no JSON form; the message names it.
    """
    config = getattr(model, "config", None)
    if config is None:
        return None
    if not isinstance(config, Mapping):
        config = copy.deepcopy(config)
        if not quantised:
            # Before serialising: transformers 4 fails on a quantization_config that is None.
            _strip(config)
    settings = config if isinstance(config, Mapping) else config.to_dict()
    content = json_safe(settings, "config", short_name, _tagged)
    # A path of the machine that trained, which means nothing elsewhere; absent in what transformers itself saves.
    content.pop("_name_or_path", None)
    if not quantised:
        content = without_quantisation(content)
    if not isinstance(config, Mapping):
        # transformers names the class on saving; FSDP2 puts its name in front of the class's.
        content["architectures"] = content.get("architectures") or [type(model).__name__.removeprefix("FSDP")]
        content.setdefault("model_type", getattr(config, "model_type", ""))
    return with_dtype(content, dtype)


def generation_content(model: nn.Module) -> dict[str, Any] | None:
    """The model's generation config as the content of its file; None when the model has none.

    The settings are written as they are: ``save_pretrained`` refuses some that models are published with.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return None
    if isinstance(config, Mapping):
        return cast("dict[str, Any]", json_safe(config, "generation_config", short_name, _tagged))
    return cast("dict[str, Any]", json.loads(config.to_json_string()))


def original_content(original_model_path: str, name: str, quantised: bool, dtype: str | None) -> dict[str, Any]:
    """A file of the original model, minus quantisation settings unless something is quantised."""
    content = json.loads((Path(original_model_path) / name).read_text(encoding="utf-8"))
    return with_dtype(content if quantised else without_quantisation(content), dtype)


def without_quantisation(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` without quantisation settings at any depth: readers fall back to those of a sub-config."""
    return {
        key: without_quantisation(value) if isinstance(value, dict) else value
        for key, value in content.items()
        if key not in _QUANTISATION_KEYS
    }


def with_dtype(content: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """``content`` with ``dtype`` in place of the dtype it names (``dtype``, or ``torch_dtype`` as of old)."""
    if dtype is None:
        return content
    return {key: dtype if key in ("dtype", "torch_dtype") else value for key, value in content.items()}


def short_name(dtype: torch.dtype) -> str:
    """A dtype as configs spell it: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def _maybe_strip_quantization_config(model_part: nn.Module) -> None:
    """Remove quantisation settings from the live config when nothing is quantised (clause CFG-004).

    Sub-configs are stripped as well. Works on configs of transformers and on dict-like ones, frozen or not.
    """
    config = getattr(unwrapped(model_part), "config", None)
    if config is not None and not holds_quantised([model_part]):
        _strip(config)


def _config_exists(original_model_path: str | os.PathLike[str] | None, config_name: str) -> bool:
    """Whether that file is in that local directory; False for None and for a hub id."""
    return original_model_path is not None and (Path(original_model_path) / config_name).is_file()


def _save_original_config_json(
    original_model_path: str | os.PathLike[str], hf_metadata_dir: str | os.PathLike[str], config_name: str
) -> None:
    """Write the original file, minus quantisation settings, into ``hf_metadata_dir``; nothing if there is none."""
    if _config_exists(original_model_path, config_name):
        content = original_content(os.fspath(original_model_path), config_name, quantised=False, dtype=None)
        write_text(Path(hf_metadata_dir) / config_name, json_text(content))


def _strip(config: Any) -> None:
    for key in _QUANTISATION_KEYS:
        # A frozen dict refuses its own methods; its attributes mirror its keys.
        getattr(config, "__dict__", {}).pop(key, None)
        if isinstance(config, OrderedDict):
            OrderedDict.pop(config, key, None)
        elif isinstance(config, MutableMapping):
            config.pop(key, None)
    inner = list(getattr(config, "__dict__", {}).values()) + (
        list(config.values()) if isinstance(config, Mapping) else []
    )
    for value in inner:
        if isinstance(value, Mapping) or hasattr(value, "to_dict"):
            _strip(value)


def _tagged(value: float, _where: str) -> Any:
    """An infinite float or NaN as the installed transformers writes and reads it."""
    if not _TRANSFORMERS_5:
        return value
    return {"__float__": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
