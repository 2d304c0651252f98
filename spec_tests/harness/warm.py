# SPDX-License-Identifier: Apache-2.0
"""What forks use again and again: imported and built in their parent, where it takes the time once."""

from __future__ import annotations

import importlib
import importlib.util

_IMPORTED = (
    "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.hf_storage",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.device_mesh",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
)
_CONVERSIONS = "transformers.conversion_mapping"


def warm() -> None:
    """Import what ranks use, and let transformers build its table of conversions, which it keeps from then on."""
    for name in _IMPORTED:
        # torch before 2.8 has no reader and writer of Hugging Face's files.
        if importlib.util.find_spec(name):
            importlib.import_module(name)
    # transformers 4 has no such table. Which model is asked for is no matter: it builds the whole.
    if importlib.util.find_spec(_CONVERSIONS):
        importlib.import_module(_CONVERSIONS).get_checkpoint_conversion_mapping("llama")
