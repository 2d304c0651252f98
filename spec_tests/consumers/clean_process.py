"""Call a function in a clean process: a fork of a server that has imported the readers and done nothing else.

What the test process has loaded, patched or cached does not reach it, and the imports are paid for once.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

from spec_tests.harness.environment import ReaderError

T = TypeVar("T")
_PRELOAD = ["spec_tests.consumers.preload"]


def in_clean_process(function: Callable[..., T], *args: Any) -> T:
    """``function(*args)``, both importable and picklable, in a new process; its exception is raised here.

    Raises:
        ReaderError: something could not be imported, other than by the code of a checkpoint.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with tempfile.TemporaryDirectory(prefix="hf-home-") as home, context.Pool(1, _offline, (home,), 1) as pool:
        try:
            return pool.apply(function, args)
        except ImportError as error:
            # Code of a checkpoint is the exporter's; its loader stands in the trace that the process has sent.
            if "dynamic_module_utils" in str(error.__cause__) or "transformers_modules" in str(error):
                raise
            raise ReaderError(f"the reader itself failed: {error}") from error


def _offline(home: str) -> None:
    os.environ.update(HF_HOME=home, HF_HUB_OFFLINE="1")
    import torch

    from spec_tests.harness.modules_cache import use_modules_cache

    # An empty cache of dynamic modules: code from an earlier load would hide that a checkpoint lacks its own.
    use_modules_cache(f"{home}/modules")
    torch.set_num_threads(1)
