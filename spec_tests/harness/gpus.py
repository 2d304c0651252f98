# SPDX-License-Identifier: Apache-2.0
"""How many GPUs there are, asked in a process of its own: this one must not hold a CUDA context, since it forks."""

from __future__ import annotations

import subprocess
import sys
from functools import cache


@cache
def gpus() -> int:
    """The number of CUDA devices that torch sees."""
    code = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    asked = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    return int(asked.stdout)
