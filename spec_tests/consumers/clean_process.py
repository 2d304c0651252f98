"""Call a function in a clean process: a fork of a server that has imported the readers and done nothing else.

What the test process has loaded, patched or cached does not reach it, and the imports are paid for once: by this
process, or by the one that `spec_tests.consumers.server` has started for several.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Client
from multiprocessing.context import ForkServerContext
from typing import Any, TypeVar

from spec_tests.harness.environment import ReaderError

T = TypeVar("T")
_servers: list[tuple[str, bytes]] = []
"""Address and key of the server that this process and its forks ask; empty where they start clean processes."""


class TraceError(Exception):
    """The trace of an error in the other process, as the error's cause."""


def server_in_use() -> tuple[str, bytes] | None:
    """What `use` was called with, here or in a process of which this one is a fork; None where it was not."""
    return _servers[0] if _servers else None


def use(address: str, key: bytes) -> None:
    """Let the server at that address, which knows the key, start the clean processes of this one and of its forks."""
    _servers[:] = [(address, key)]


def in_clean_process(function: Callable[..., T], *args: Any) -> T:
    """``function(*args)``, both importable and picklable, in a new process; its exception is raised here.

    Raises:
        ReaderError: something could not be imported, other than by the code of a checkpoint.
    """
    call = pickle.dumps((function, args))
    value, error, trace = pickle.loads(_asked(call) if _servers else called(call))
    if error is None:
        return value
    # Code of a checkpoint is the exporter's; its loader stands in the trace that the process has sent.
    of_a_checkpoint = "dynamic_module_utils" in trace or "transformers_modules" in str(error)
    if isinstance(error, ImportError) and not of_a_checkpoint:
        raise ReaderError(f"the reader itself failed: {error}") from error
    raise error from TraceError(trace)


def forks() -> ForkServerContext:
    """The context of multiprocessing whose processes are forks of the one that has imported the readers."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spec_tests.consumers.preload"])
    return context


def called(call: bytes) -> bytes:
    """What a clean process makes of a pickled function and its arguments: its value, its error and that one's trace."""
    with (
        tempfile.TemporaryDirectory(prefix="hf-home-") as home,
        ProcessPoolExecutor(1, forks()) as pool,
    ):
        return pool.submit(_answer, call, home).result()


def _asked(call: bytes) -> bytes:
    address, key = _servers[0]
    with Client(address, "AF_UNIX", key) as line:
        line.send(call)
        return line.recv()


def _answer(call: bytes, home: str) -> bytes:
    try:
        _offline(home)
        function, args = pickle.loads(call)
        return pickle.dumps((function(*args), None, ""))
    except Exception as error:  # noqa: BLE001 - it is raised again where the call came from
        trace = traceback.format_exc()
        try:
            answer = pickle.dumps((None, error, trace))
            pickle.loads(answer)
        except Exception:  # noqa: BLE001 - whatever a class raises when it is taken apart or rebuilt
            return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), trace))
        return answer


def _offline(home: str) -> None:
    os.environ.update(HF_HOME=home, HF_HUB_OFFLINE="1")
    import huggingface_hub.constants
    import torch
    import transformers.utils.hub

    from spec_tests.harness.modules_cache import use_modules_cache

    # Both, the second in version 4, have read the environment when they were imported, and do not again.
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    transformers.utils.hub._is_offline_mode = True
    # An empty cache of dynamic modules: code from an earlier load would hide that a checkpoint lacks its own.
    use_modules_cache(f"{home}/modules")
    torch.set_num_threads(1)
