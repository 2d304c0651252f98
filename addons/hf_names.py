# SPDX-License-Identifier: Apache-2.0
"""The names and layouts under which transformers itself saves one of its own models (clause IDX-015).

transformers 5 holds some models otherwise than they are published: experts in one tensor, parts under other names.
On saving it reverts its own conversions, and other readers, transformers 4 among them, know no other form. Its own
function does it here too.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .modules import ModelPart
from .ranks import attempt


def as_published(part: ModelPart, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a part as ``save_pretrained`` would save them.

    What is only renamed stays as it is, sharded or not. What is split or joined is computed from the whole tensors,
    which every rank then holds: collective for sharded ones.

    Args:
        part: a model of transformers' own; for any other, and with transformers 4, nothing changes.
        tensors: its tensors under clean native names.
    """
    if not isinstance(part.model, transformers.PreTrainedModel):
        return tensors
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # transformers 4 has nothing to revert
        return tensors
    model = _plain(part)
    # Without values first: which tensors does it only rename?
    empty = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}
    old_names = {id(tensor): name for name, tensor in empty.items()}
    reverted = revert_weight_conversion(model, dict(empty))
    published = {name: tensors[old_names[id(one)]] for name, one in reverted.items() if id(one) in old_names}
    if len(published) == len(reverted):
        return published
    kept = {old_names[id(one)] for one in reverted.values() if id(one) in old_names}
    whole = {name: _whole(tensor) for name, tensor in tensors.items() if name not in kept}
    converted: dict[str, torch.Tensor] = revert_weight_conversion(model, whole)
    return published | converted


def _plain(part: ModelPart) -> Any:
    # transformers looks conversions up by the names of classes, and FSDP2 has changed those.
    model = part.model
    sharded = any(type(module).__name__.startswith("FSDP") for module in part.modules.values())
    if not sharded or getattr(model, "_weight_conversions", None) is not None:
        return model
    kind = next(base for base in type(model).__mro__ if base.__module__.startswith("transformers."))
    with torch.device("meta"):
        plain, _ = attempt(kind, model.config)
    return model if plain is None else plain


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    whole: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole
