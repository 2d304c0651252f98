# SPDX-License-Identifier: Apache-2.0
"""The contents of ``adapter_config.json`` and ``automodel_peft_config.json``."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import numbers
import operator
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .lora_sites import unwrapped
from .ranks import gather
from .targets import Targets, targets, united

ADAPTER_CONFIG = "adapter_config.json"
AUTOMODEL_PEFT_CONFIG = "automodel_peft_config.json"

# The end of an architecture name decides; the first that fits. Task types as in peft.TaskType.
_TASK_TYPES = (
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForQuestionAnswering", "QUESTION_ANS"),
    ("ForSeq2SeqLM", "SEQ_2_SEQ_LM"),
    ("ForFeatureExtraction", "FEATURE_EXTRACTION"),
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
    ("Model", "FEATURE_EXTRACTION"),
)


def adapter_config(peft_config: Any, model: nn.Module, found: Targets) -> dict[str, Any]:
    """The dict of ``adapter_config.json`` (clauses ADP-001 to ADP-009).

    Args:
        peft_config: read by attribute; ``dim`` / ``alpha``, or PEFT's own ``r`` / ``lora_alpha``.
        model: the model or its first part, free of wrappers; its ``config`` names the base model.
        found: what the walk over the model found, over all parts and ranks.

    Raises:
        ValueError: nothing is trained; the tensors' rank is not the config's; DoRA in one but not the other.
        TypeError: rank or alpha is no number.
    """
    rank = lora_rank(peft_config)
    use_dora = bool(getattr(peft_config, "use_dora", False))
    if not found.keys:
        raise ValueError(
            "no trained LoRA found in the model: PEFT refuses an adapter without targets. Was it saved before LoRA "
            "was applied, or with every LoRA parameter frozen (requires_grad=False)?"
        )
    if found.ranks != (rank,):
        raise ValueError(
            f"the PEFT config says rank {rank}, but the model's LoRA tensors have rank "
            f"{', '.join(map(str, found.ranks))}: readers take rank and scale from the config"
        )
    if found.magnitudes != use_dora:
        raise ValueError(
            f"the PEFT config says use_dora={use_dora}, but the model "
            f"{'has' if found.magnitudes else 'has no'} DoRA magnitudes (lora_magnitude)"
        )
    config: dict[str, Any] = {
        "base_model_name_or_path": getattr(getattr(model, "config", None), "name_or_path", None) or None,
        "bias": "none",
        "lora_alpha": _alpha(peft_config),
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(found.modules),
        "task_type": task_type(model),
        "use_dora": use_dora,
    }
    if found.parameters:
        config["target_parameters"] = list(found.parameters)
    return config


def lora_rank(peft_config: Any) -> int:
    """The rank: ``dim``, or ``r`` of a `peft.LoraConfig`; a positive int."""
    name, value = _either(peft_config, "dim", "r")
    try:
        rank = operator.index(value)
    except TypeError:
        raise TypeError(f"peft_config.{name} is {value!r}: the rank is a whole number") from None
    if rank <= 0:
        raise ValueError(f"peft_config.{name} is {rank}: the rank is greater than zero")
    return rank


def task_type(model: nn.Module) -> str | None:
    """PEFT's task type for the model's first architecture; None when the architecture tells none.

    transformers sets ``config.architectures`` only on saving and loading: a model that was just built has
    none yet, and then its class name is the architecture.
    """
    model_config = getattr(model, "config", None)
    names = getattr(model_config, "architectures", None) or [type(model).__name__]
    name = names if isinstance(names, str) else names[0]
    if name.endswith("ForConditionalGeneration"):
        return "SEQ_2_SEQ_LM" if getattr(model_config, "is_encoder_decoder", False) else "CAUSAL_LM"
    return next((task for ending, task in _TASK_TYPES if name.endswith(ending)), None)


def json_text(content: Mapping[str, Any]) -> str:
    """``content`` as the JSON text of a checkpoint file: sorted keys, two spaces, final newline."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def json_safe(value: Any, where: str) -> Any:
    """``value`` in types that JSON has; ``where`` names it in an error.

    dtypes become their ``str``, paths strings, enums their value, sets sorted lists, dataclasses dicts.

    Raises:
        TypeError: there is no plain form for it (clause META-004).
    """
    value = _plain(value)
    if isinstance(value, Mapping):
        return {str(key): json_safe(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((json_safe(item, where) for item in value), key=json.dumps)
    if isinstance(value, (list, tuple)):
        return [json_safe(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    raise TypeError(f"{where} is {value!r} of type {type(value).__name__}, which cannot be written as JSON")


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value


def _get_hf_peft_config(peft_config: Any, model_state: Any, v4_compatible: bool = False) -> dict[str, Any]:
    """The minimal PEFT dict for a model state; collective over its ``pp_group``, if it has one."""

    def local() -> Targets:
        return targets(model_state.model, v4_compatible)

    pp_group = getattr(model_state, "pp_group", None)
    found = local() if pp_group is None else united(gather(local, pp_group))
    return adapter_config(peft_config, unwrapped(model_state.model[0]), found)


def _get_automodel_peft_metadata(peft_config: Any) -> dict[str, Any]:
    """The whole PEFT config, JSON-safe, minus what ``adapter_config.json`` already holds (clause META-001)."""
    known_elsewhere = {"dim", "alpha", "r", "lora_alpha"}
    return {
        key: json_safe(value, f"peft_config.{key}")
        for key, value in peft_config.to_dict().items()
        if key not in known_elsewhere
    }


def _alpha(peft_config: Any) -> int | float:
    name, value = _either(peft_config, "alpha", "lora_alpha")
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"peft_config.{name} is {value!r}: alpha is a number")


def _either(peft_config: Any, trainer_name: str, peft_name: str) -> tuple[str, Any]:
    for name in (trainer_name, peft_name):
        if hasattr(peft_config, name):
            return name, getattr(peft_config, name)
    raise TypeError(f"peft_config of type {type(peft_config).__name__} has neither {trainer_name!r} nor {peft_name!r}")
