# SPDX-License-Identifier: Apache-2.0
"""The contents of ``adapter_config.json`` and ``automodel_peft_config.json``."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from torch import nn

from .json_content import json_safe
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


_NOT_WRITTEN = {
    "alpha_pattern": {},
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "use_rslora": False,
}


def adapter_config(peft_config: Any, model: nn.Module, found: Targets) -> dict[str, Any]:
    """The dict of ``adapter_config.json`` (clauses ADP-001 to ADP-009).

    Args:
        peft_config: read by attribute; ``dim`` / ``alpha``, or PEFT's own ``r`` / ``lora_alpha``.
        model: the model or its first part, free of wrappers; its ``config`` names the base model.
        found: what the walk over the model found, over all parts and ranks.

    Raises:
        ValueError: there is no LoRA; rank, scale or DoRA of the model are not the config's; the config has settings
            that are not written here.
        TypeError: rank or alpha is no number.
    """
    rank, alpha = lora_rank(peft_config), lora_alpha(peft_config)
    use_dora = bool(getattr(peft_config, "use_dora", False))
    check_plain(peft_config)
    if not found.shapes:
        raise ValueError(
            "no LoRA found in the model: PEFT refuses an adapter without targets. Was it saved before LoRA was "
            "applied? LoRA is a module's children lora_A and lora_B, or grouped expert parameters; what PEFT injected "
            "(lora_A.default), PEFT saves"
        )
    if found.ranks != (rank,):
        raise ValueError(
            f"the PEFT config says rank {rank}, but the model's LoRA tensors have rank "
            f"{', '.join(map(str, found.ranks))}: readers take rank and scale from the config"
        )
    for module, scale in found.scales:
        if not math.isclose(scale, alpha / rank, rel_tol=1e-6):
            raise ValueError(
                f"module {module!r} scales its LoRA by {scale}, but readers scale by alpha / rank of the PEFT config, "
                f"{alpha} / {rank}"
            )
    if found.magnitudes != (use_dora,):
        raise ValueError(
            f"the PEFT config says use_dora={use_dora}; then every LoRA has a DoRA magnitude (lora_magnitude), or none "
            "has. Experts have none"
        )
    config: dict[str, Any] = {
        "base_model_name_or_path": getattr(getattr(model, "config", None), "name_or_path", None) or None,
        "bias": "none",
        "lora_alpha": alpha,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(found.modules),
        "task_type": task_type(model),
        "use_dora": use_dora,
    }
    if found.fused:
        config["target_parameters"] = found.parameters
    return config


def lora_rank(peft_config: Any) -> int:
    """The rank: ``dim``, or ``r`` of a `peft.LoraConfig`; a positive int."""
    name, value = _either(peft_config, "dim", "r")
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"peft_config.{name} is {value!r}: the rank is a whole number")
    rank = int(value)
    if rank <= 0:
        raise ValueError(f"peft_config.{name} is {rank}: the rank is greater than zero")
    return rank


def lora_alpha(peft_config: Any) -> int | float:
    """The alpha: ``alpha``, or ``lora_alpha`` of a `peft.LoraConfig`; a positive, finite number."""
    name, value = _either(peft_config, "alpha", "lora_alpha")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"peft_config.{name} is {value!r}: alpha is a number")
    alpha = int(value) if isinstance(value, numbers.Integral) else float(value)
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"peft_config.{name} is {value!r}: alpha is finite and greater than zero")
    return alpha


def check_plain(peft_config: Any) -> None:
    """Refuse settings of a `peft.LoraConfig` that change what the adapter computes and are not written here.

    Raises:
        ValueError: one of them is set; left out, the adapter would load and compute something else (clause ADP-017).
    """
    for name, plain in _NOT_WRITTEN.items():
        value = getattr(peft_config, name, plain)
        if value and value != plain:
            raise ValueError(f"peft_config.{name} is {value!r}, which this adapter cannot hold")


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
    settings = peft_config.to_dict()
    if not isinstance(settings, Mapping):
        raise TypeError(f"peft_config.to_dict() gives {type(settings).__name__}, not a dict")
    return {
        key: json_safe(value, f"peft_config.{key}") for key, value in settings.items() if key not in known_elsewhere
    }


def _either(peft_config: Any, trainer_name: str, peft_name: str) -> tuple[str, Any]:
    for name in (trainer_name, peft_name):
        if hasattr(peft_config, name):
            return name, getattr(peft_config, name)
    raise TypeError(f"peft_config of type {type(peft_config).__name__} has neither {trainer_name!r} nor {peft_name!r}")
