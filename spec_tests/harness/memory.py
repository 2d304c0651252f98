# SPDX-License-Identifier: Apache-2.0
"""Let memory run out in this process, at the n-th tensor of numbers or bytes that torch makes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "c10d_functional")


NO_MEMORY = "no memory on this device"


def _run_out() -> None:
    raise torch.OutOfMemoryError(NO_MEMORY)


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types none of it
    """Counts the tensors, floating-point or of bytes, that operators of torch make while it is entered; views are none.

    Seen by torch's own dispatch: nothing of the implementation is patched. Collectives do not count, nor does what
    torch.distributed makes for its own messages: of what fails there on one rank alone the others cannot hear.

    Args:
        failing: the number, from 0, of the tensor that cannot be made; None: all can.
        fail: called then; it raises the error, or interrupts the process in another way.

    Attributes:
        made: how many were made.
    """

    def __init__(self, failing: int | None = None, fail: Callable[[], Any] = _run_out) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.made, self._failing, self._fail = 0, failing, fail

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator; raise the error where it is its turn."""
        result = func(*args, **(kwargs or {}))
        if func.namespace in _COLLECTIVES:
            return result
        given = {_memory(one) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        made = [one for one in tree_leaves(result) if isinstance(one, torch.Tensor) and _is_content(one)]
        if any(_memory(one) not in given for one in made) and not _in_a_collective():
            self.made += 1
            if self.made - 1 == self._failing:
                self._fail()
        return result


def _is_content(tensor: torch.Tensor) -> bool:
    return bool(tensor.numel()) and not tensor.is_meta and (tensor.is_floating_point() or tensor.dtype == torch.uint8)


def _in_a_collective() -> bool:
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == "torch.distributed.distributed_c10d":
            return True
    return False


def _memory(tensor: torch.Tensor) -> int:
    local = getattr(tensor, "_local_tensor", tensor)
    return local.untyped_storage().data_ptr()
