# SPDX-License-Identifier: Apache-2.0
"""The contents of ``adapter_config.json`` and ``automodel_peft_config.json``."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

from torch import nn

from .heads import USUAL_HEADS, ends_like, task_type
from .plain_json import json_safe
from .targets import Adapter

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
AUTOMODEL_PEFT_CONFIG = "automodel_peft_config.json"
# How automodel_peft_config.json calls the layout of fused expert LoRA (clause META-007).
PARAMWRAPPER_LAYOUT = "paramwrapper_layout"
LAYOUTS = ("peft-0.18", "peft-0.19.1")

# Settings of a `peft.LoraConfig` that change nothing, or are read off the model. Any other that is set changes what the
# adapter computes and has no place in the files (clause ADP-022).
_KNOWN_SETTINGS = frozenset(
    (
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "init_lora_weights"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters"),
        *("modules_to_save", "ensure_weight_tying", "fan_in_fan_out", "lora_dropout", "runtime_config"),
        *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_type", "peft_version"),
        *("eva_config", "megatron_core", "qalora_group_size", "task_type"),
    )
)
# Ways to initialise LoRA that leave the base model as it is; the others subtract from it what they put into LoRA.
_PLAIN_INITIALISATIONS = (True, False, None, "eva", "gaussian", "orthogonal")


def adapter_config(peft_config: Any, model: nn.Module, plan: Adapter) -> dict[str, Any]:
    """The dict of ``adapter_config.json`` (clauses ADP-001 to ADP-009).

    Its keys are those that every PEFT since 0.18 knows (clauses ADP-016, ADP-033), some only where they say something.

    Args:
        peft_config: read by attribute; ``dim`` / ``alpha``, or PEFT's own ``r`` / ``lora_alpha``.
        model: the model or its first part, free of wrappers; its ``config`` names the base model, or nothing
            does (clause ADP-013).
        plan: what the adapter holds, over all parts and ranks.

    Raises:
        ValueError: there is no LoRA (clause ADP-012); the model's ranks, scales or DoRA cannot be expressed (clause
            ADP-015); the config has settings that are not written here.
        TypeError: rank or alpha is no number.
    """
    rank, alpha = rank_and_alpha(peft_config)
    use_dora = bool(getattr(peft_config, "use_dora", False))
    _check_settings(peft_config)
    if not plan.targets:
        raise ValueError(
            "the model must hold LoRA, got none, and PEFT refuses an adapter without targets: save after LoRA was "
            "applied (a module's children lora_A and lora_B, or grouped expert parameters)"
        )
    task = task_of(peft_config, model, plan)
    if {one.dora for one in plan.targets} != {use_dora} or (use_dora and plan.target_parameters):
        raise ValueError(
            f"DoRA magnitudes (lora_magnitude) must be on {'every' if use_dora else 'no'} LoRA by the PEFT config's "
            f"use_dora={use_dora}, got some with and some without, or none at all: experts, and "
            f"{plan.target_parameters[:1]} beside them, can have none"
        )
    rank_pattern = {key: one.rank for one in plan.targets if one.rank != rank for key in plan.patterns(one)}
    more: dict[str, Any] = {
        "alpha_pattern": alpha_pattern(plan, rank, alpha, sure=_is_plain(peft_config)),
        "exclude_modules": plan.excluded,
        # PEFT warns of Conv1D without it (clause LOAD-005), and refuses it on bare parameters (clause TGT-025).
        "fan_in_fan_out": all(one.turned for one in plan.targets) and not plan.target_parameters,
        "modules_to_save": list(plan.heads),
        "rank_pattern": rank_pattern,
        "target_parameters": plan.target_parameters,
    }
    _check_patterns(plan, more["rank_pattern"], more["alpha_pattern"])
    return {
        "base_model_name_or_path": getattr(getattr(model, "config", None), "name_or_path", None) or None,
        "bias": "none",
        "lora_alpha": alpha,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": plan.target_modules,
        "task_type": task,
        "use_dora": use_dora,  # also when it is false (clause ADP-032)
        **{name: value for name, value in more.items() if value},
    }


def alpha_pattern(plan: Adapter, rank: int, alpha: float, sure: bool) -> dict[str, float]:
    """Target -> its own alpha, where ``alpha`` over its rank is not the scale it was trained with (clause ADP-017).

    Args:
        plan: what the adapter holds.
        rank: of the config.
        alpha: of the config.
        sure: whether a target of the config's rank that does not know its scale has ``alpha / rank``.

    Raises:
        ValueError: a target's scale is not known.
    """
    own_alphas: dict[str, float] = {}
    for one in plan.targets:
        if one.scale is None and not (sure and one.rank == rank):
            raise ValueError(
                f"the scale of {one.names[0]!r} must be known, got LoRA of rank {one.rank} where the PEFT config has "
                f"rank {rank} and alpha {alpha}, which do not tell it: give its module the number as the attribute "
                "'scale'"
            )
        own_alpha = (alpha / rank if one.scale is None else one.scale) * one.rank
        if not math.isclose(own_alpha, alpha, rel_tol=1e-6):
            own = round(own_alpha) if math.isclose(own_alpha, round(own_alpha)) else own_alpha
            own_alphas |= dict.fromkeys(plan.patterns(one), own)
    return own_alphas


def rank_and_alpha(peft_config: Any) -> tuple[int, int | float]:
    """``dim`` and ``alpha``, or ``r`` and ``lora_alpha`` of a `peft.LoraConfig`: finite, above 0 (clause ADP-018)."""
    return int(_number(peft_config, ("dim", "r"), numbers.Integral)), _number(
        peft_config, ("alpha", "lora_alpha"), numbers.Real
    )


def _number(peft_config: Any, names: tuple[str, str], kind: type) -> int | float:
    name = next((name for name in names if hasattr(peft_config, name)), names[0])
    value = getattr(peft_config, name, None)
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"peft_config.{name} must be a number of the kind {kind.__name__}, got {value!r}: convert it")
    # mypy does not know that `kind` is one of the abstract numbers, all of which float takes.
    number = int(value) if isinstance(value, numbers.Integral) else float(value)  # type: ignore[arg-type]
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"peft_config.{name} must be finite and greater than zero, got {value!r}: correct it")
    return number


def _is_plain(peft_config: Any) -> bool:
    return not any(getattr(peft_config, name, None) for name in ("alpha_pattern", "rank_pattern", "use_rslora"))


def task_of(peft_config: Any, model: nn.Module, plan: Adapter) -> str | None:
    """``task_type``: the PEFT config's own where it has one (clause ADP-025), else what fits the model.

    Raises:
        ValueError: under the task that the config names, PEFT would ask for a head that has LoRA instead (clause
            ADP-028).
    """
    said = getattr(peft_config, "task_type", None)
    task = str(getattr(said, "value", said)) if said else task_type(model)
    usual = USUAL_HEADS.get(task or "", ())
    beside = [name for name in plan.target_modules if usual and ends_like(f"{name}.weight", usual)]
    if beside and said:
        raise ValueError(
            f"peft_config.task_type must fit the adapter, got {said!r} with LoRA on {beside[0]!r}: under this task "
            "PEFT asks for the whole module. Set it to None"
        )
    return None if beside else task


def _check_settings(peft_config: Any) -> None:
    wrong = []
    if dataclasses.is_dataclass(peft_config) and hasattr(peft_config, "peft_type"):
        for field in dataclasses.fields(peft_config):
            value = getattr(peft_config, field.name)
            if field.name not in _KNOWN_SETTINGS and value and value != field.default:
                wrong.append(field.name)
    if getattr(peft_config, "init_lora_weights", None) not in _PLAIN_INITIALISATIONS:
        wrong.append("init_lora_weights")
    if wrong:
        raise ValueError(
            f"peft_config.{wrong[0]} must be one that this adapter can hold, got {getattr(peft_config, wrong[0])!r}: "
            "loaded, it would compute something else. Let PEFT save it (save_pretrained)"
        )


def _check_patterns(plan: Adapter, *patterns: dict[str, Any]) -> None:
    # PEFT takes the first pattern that is a name or the end of one (peft 0.21 get_pattern_key; clause ADP-014).
    if not any(patterns):
        return
    for own in (key for one in plan.targets for key in plan.patterns(one)):
        segments = own.split(r"\.")
        ends = [r"\.".join(segments[start:]) for start in range(1, len(segments))]
        if other := [
            end for end in ends for pattern in patterns if end in pattern and pattern[end] != pattern.get(own)
        ]:
            raise ValueError(
                f"the rank and alpha of every module must be found by its own name, got {other[0]!r}, which is "
                f"also the end of {own!r}: rename one"
            )


def automodel_peft_metadata(peft_config: Any) -> dict[str, Any]:
    """The whole PEFT config, JSON-safe, minus what ``adapter_config.json`` holds (clauses META-001, META-003)."""
    known_elsewhere = {"dim", "alpha", "r", "lora_alpha"}
    settings = peft_config.to_dict()
    if not isinstance(settings, Mapping):
        raise TypeError(f"peft_config.to_dict() must give a dict, got {type(settings).__name__}: correct it")
    return {
        key: json_safe(value, f"peft_config.{key}") for key, value in settings.items() if key not in known_elsewhere
    }
