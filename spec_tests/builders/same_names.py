# SPDX-License-Identifier: Apache-2.0
"""A state-dict adapter that gives the tensors of several modules one name, which no save can take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch


class SameNames:
    """A state-dict adapter with a fault: whatever the module, its tensors come out under one name."""

    def to_hf(self, state_dict: Mapping[str, torch.Tensor], **_kwargs: Any) -> dict[str, torch.Tensor]:
        """Name everything after one module."""
        return {re.sub(r"layers\.\d+\.q", "layers.0.q", name): tensor for name, tensor in state_dict.items()}


def same_names_adapter() -> SameNames:
    """An adapter under which two layers' tensors have one name."""
    return SameNames()
