# SPDX-License-Identifier: Apache-2.0
"""What is compared of a model's output, whatever its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def computed(found: Any) -> Tensor:
    """The logits of a model's output; those of starts and ends one above the other; else the last hidden state."""
    import torch

    if "start_logits" in found:
        return torch.stack([found.start_logits, found.end_logits])
    logits: Tensor = found.logits if "logits" in found else found.last_hidden_state
    return logits
