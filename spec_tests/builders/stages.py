# SPDX-License-Identifier: Apache-2.0
"""A tiny Llama cut into pipeline parts: each has the whole model's names, and the tensors of its own layers."""

from __future__ import annotations

import copy
from collections.abc import Collection

from torch import nn


def stage(model: nn.Module, layers: Collection[int], *, first: bool, last: bool) -> nn.Module:
    """A copy of a Llama that keeps these layers; the first part has the embedding, the last one norm and head."""
    part = copy.deepcopy(model)
    for number in range(len(part.model.layers)):
        if number not in layers:
            part.model.layers[number] = None
    if not first:
        part.model.embed_tokens = None
    if not last:
        part.model.norm = part.lm_head = None
    return part


def stages(model: nn.Module) -> list[nn.Module]:
    """A Llama of two layers as two parts."""
    return [stage(model, [0], first=True, last=False), stage(model, [1], first=False, last=True)]
