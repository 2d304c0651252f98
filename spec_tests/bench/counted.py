# SPDX-License-Identifier: Apache-2.0
"""Count what a rank receives from others, at the collectives.

Every function of torch.distributed, be it an object collective or point-to-point, ends in an operator ``c10d::...``.
They are counted there and not by wrapping the functions: whoever imported a function by name would go uncounted, and
an object collective, which calls others, would count twice. An operator that is not known here is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from spec_tests.bench.rows import BenchError

_NOTHING = {"send", "barrier", "monitored_barrier_", "check_for_nan", "wait_tensor"}
_FROM_ALL = {"allgather_", "_allgather_base_", "allgather_coalesced_", "allgather_into_tensor_coalesced_", "gather_"}
_ALWAYS = {
    "allreduce_",
    "allreduce_coalesced_",
    "recv_",
    "recv_any_source_",
    "reduce_scatter_",
    "_reduce_scatter_base_",
    "reduce_scatter_tensor_coalesced_",
    "alltoall_",
    "alltoall_base_",
}
# Operator -> the position of its root among the arguments, and whether the root receives, or all others.
_ROOTED = {"broadcast_": (2, False), "scatter_": (3, False), "reduce_": (3, True)}


class Received(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own class
    """Counts the bytes of results that come from other ranks, while it is entered; in this thread.

    Attributes:
        bytes: what this rank has received. A sum over all ranks counts as its result, however it is computed.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count the operator, and let it run."""
        del types
        if func.namespace in {"c10d", "_c10d_functional"}:
            self.bytes += received(func.overloadpacket.__name__, args)
        return func(*args, **(kwargs or {}))


def received(operator: str, args: tuple[Any, ...]) -> int:
    """Bytes that this rank receives in one call of an operator.

    Raises:
        BenchError: the operator is not known.
    """
    group = next((dist.ProcessGroup.unbox(one) for one in args if _is_group(one)), None)
    if operator in _NOTHING or (group is not None and group.size() == 1):
        return 0
    if group is not None and operator in _FROM_ALL:
        # Of what is gathered one part is this rank's own. On the other ranks a gather to one has no results.
        return max(0, size(args[0]) - size(args[1]))
    if group is not None and operator in _ROOTED:
        position, root_receives = _ROOTED[operator]
        return size(args[0]) if (group.rank() == args[position]) == root_receives else 0
    if group is not None and operator in _ALWAYS:
        return size(args[0])
    raise BenchError(f"{operator} is a collective whose traffic is not counted yet: add it in spec_tests/bench")


def size(tensors: torch.Tensor | Iterable[Any]) -> int:
    """Bytes of tensors in any nesting of lists."""
    return tensors.nbytes if isinstance(tensors, torch.Tensor) else sum(size(one) for one in tensors)


def _is_group(argument: Any) -> bool:
    return isinstance(argument, torch.ScriptObject) and "ProcessGroup" in str(argument._type())
