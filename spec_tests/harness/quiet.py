# SPDX-License-Identifier: Apache-2.0
"""What a process of a command that walks many models does first."""

from __future__ import annotations

import os
import warnings


def quiet() -> None:
    """No hub, one thread a worker, and none of transformers' talk."""
    os.environ["HF_HUB_OFFLINE"] = "1"

    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
