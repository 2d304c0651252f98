# SPDX-License-Identifier: Apache-2.0
"""Where transformers keeps the code of models that bring their own, for this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ENVIRONMENT = "HF_MODULES_CACHE"
PACKAGE = "transformers_modules"


def use_modules_cache(directory: str | Path) -> None:
    """Make ``directory`` the cache of dynamic modules, before this process has loaded any.

    The environment alone is not enough: transformers reads it once, when it is imported.

    Raises:
        RuntimeError: code was already loaded from another cache. Two caches in one process mix: the package
            that both are imported as is looked up once.
    """
    from transformers import dynamic_module_utils, utils
    from transformers.utils import hub

    cache, used = str(directory), dynamic_module_utils.HF_MODULES_CACHE
    if PACKAGE in sys.modules and cache != used:
        raise RuntimeError(f"model code was already loaded from {used}")
    os.environ[ENVIRONMENT] = cache
    # A child is handed its parent's path, and would import the parent's copy of a model's code.
    sys.path[:] = [entry for entry in sys.path if not (Path(entry) / PACKAGE).is_dir()]
    for module in (dynamic_module_utils, hub, utils):
        module.HF_MODULES_CACHE = cache
