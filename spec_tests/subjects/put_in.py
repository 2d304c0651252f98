# SPDX-License-Identifier: Apache-2.0
"""Put a case's values into a model with LoRA: copy this file beside your binding; it needs torch alone.

``put_in(model, safetensors.torch.load_file(f"{case}/delta.safetensors"))`` finds the parameters by the ends of their
names, through PEFT's wrappers and those of others that call their matrices ``lora_A`` and ``lora_B``, or ``lora_a``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_SPELLINGS = {
    "lora_A": ("lora_A", "lora_A.weight", "lora_A.default.weight", "lora_a", "lora_a.weight"),
    "lora_B": ("lora_B", "lora_B.weight", "lora_B.default.weight", "lora_b", "lora_b.weight"),
    "lora_magnitude": ("lora_magnitude", "lora_magnitude_vector.default.weight", "magnitude"),
}


class NotPutIn(ValueError):  # noqa: N818 - the suite looks for this name
    """The model is not the case's: the suite takes it that the trainer cannot do this case."""


@torch.no_grad()
def put_in(model: Any, values: Mapping[str, torch.Tensor]) -> None:
    """Set each parameter to its value, in the parameter's dtype.

    Args:
        model: with LoRA where the case has it.
        values: ``<module>.lora_A`` [r, in], ``<module>.lora_B`` [out, r], ``<module>.lora_magnitude`` [out], or a whole
            parameter by its name.

    Raises:
        NotPutIn: a value has no parameter, or several, or one of another shape; or there is LoRA without a value.
    """
    parameters = dict(model.named_parameters())
    filled = set()
    for name, value in sorted(values.items()):
        found = _found(name, parameters)
        if tuple(parameters[found].shape) != tuple(value.shape):
            raise NotPutIn(f"{found} must have the shape {tuple(value.shape)}, got {tuple(parameters[found].shape)}")
        parameters[found].copy_(value)
        filled.add(found)
    left = [name for name in parameters if "lora_" in name and name not in filled]
    if left:
        raise NotPutIn(f"LoRA must be where the case has it, got {left[0]} besides")


def _found(name: str, parameters: Mapping[str, Any]) -> str:
    module, dot, end = name.rpartition(".")
    spelled = [f"{module}{dot}{ending}" for ending in _SPELLINGS.get(end, (end, f"modules_to_save.default.{end}"))]
    found = [one for one in parameters if any(one == ending or one.endswith("." + ending) for ending in spelled)]
    if len(found) != 1:
        raise NotPutIn(f"{name} must be one parameter of the model, got {found}")
    return found[0]
