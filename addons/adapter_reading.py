# SPDX-License-Identifier: Apache-2.0
"""What a trainer reads back from an adapter that these hooks wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AUTOMODEL_PEFT_CONFIG, LAYOUTS, PARAMWRAPPER_LAYOUT
from .plain_json import read_json


def load_automodel_peft_config_dict(model_path: str | os.PathLike[str]) -> dict[str, Any]:
    """The PEFT config that an adapter was saved with, as ``to_dict()`` gave it, but in JSON's types (clause META-006).

    ``dim`` and ``alpha``, of a `peft.LoraConfig` ``r`` and ``lora_alpha``, come from ``adapter_config.json``, and
    everything else from ``automodel_peft_config.json``.
    """
    config, settings = (read_json(Path(model_path) / name) for name in (ADAPTER_CONFIG, AUTOMODEL_PEFT_CONFIG))
    # Every config of PEFT says its type.
    rank, alpha = ("r", "lora_alpha") if "peft_type" in settings else ("dim", "alpha")
    return {**settings, rank: config["r"], alpha: config["lora_alpha"]}


def paramwrapper_layout(model_path: str | os.PathLike[str]) -> str | None:
    """Which layout the fused expert LoRA of an adapter has; None when it has none (clause META-008).

    Raises:
        ValueError: the stamp is unknown or contradicts the shapes, or there is none and the shapes fit both layouts.
    """
    fused = [
        p
        for p in read_json(Path(model_path) / ADAPTER_CONFIG).get("target_parameters") or []
        if not p.endswith(".weight")
    ]
    stamp = read_json(Path(model_path) / AUTOMODEL_PEFT_CONFIG).get(PARAMWRAPPER_LAYOUT)
    if stamp not in (None, *LAYOUTS) or (stamp and not fused):
        raise ValueError(
            f"{PARAMWRAPPER_LAYOUT} in {model_path} must be one of {LAYOUTS}, and there must be fused parameters, got "
            f"{stamp!r} with {fused}: correct {AUTOMODEL_PEFT_CONFIG}"
        )
    if not fused:
        return None
    possible = set(LAYOUTS)
    with safe_open(Path(model_path) / ADAPTER_WEIGHTS, framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - no mapping
    inside = ".base_layer.lora_A.weight"
    for inner in (key.removesuffix(inside) for key in shapes if key.endswith(inside)):
        (_, up_in), (up_out, _) = (shapes[f"{inner}.base_layer.lora_{matrix}.weight"] for matrix in "AB")
        (_, down_in), (down_out, _) = (shapes[f"{inner}.lora_{matrix}.weight"] for matrix in "AB")
        if not (up_in == down_out and up_out in (down_in, 2 * down_in)):
            possible.discard("peft-0.19.1")
        if not (up_out == down_in and up_in in (down_out, 2 * down_out)):
            possible.discard("peft-0.18")
    if (stamp and stamp not in possible) or (not stamp and len(possible) != 1):
        raise ValueError(
            f"{PARAMWRAPPER_LAYOUT} in {model_path} must be what the shapes of the fused LoRA fit, {sorted(possible)}, "
            f"got {stamp!r}: correct {AUTOMODEL_PEFT_CONFIG}"
        )
    return stamp or possible.pop()
