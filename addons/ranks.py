# SPDX-License-Identifier: Apache-2.0
"""Do a step on the group's rank 0, and let every rank know how it went.

A save is a collective act: a rank that fails alone leaves the others waiting for the whole group timeout
(clause RANK-003). The functions here therefore turn an error into data, send it, and raise it everywhere.
Payloads are pickled before the collective starts, so that a value that cannot be pickled is an ordinary
error and not a rank that never arrives.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

T = TypeVar("T")


class PeerError(RuntimeError):
    """Another rank of the process group failed; the message names the rank and carries its error."""


def is_member(group: dist.ProcessGroup | None) -> bool:
    """Whether this process takes part in ``group`` (always true without torch.distributed)."""
    return cast(object, group) is not dist.GroupMember.NON_GROUP_MEMBER


def group_size(group: dist.ProcessGroup | None) -> int:
    """Number of ranks in ``group`` (None: the default group); 1 when torch.distributed is not initialised."""
    return dist.get_world_size(group) if _initialised() else 1


def is_rank_zero(group: dist.ProcessGroup | None) -> bool:
    """Whether this process is rank 0 of ``group`` itself, which need not be global rank 0."""
    return not _initialised() or dist.get_rank(group) == 0


def gather(prepare: Callable[[], T], group: dist.ProcessGroup | None) -> list[T]:
    """Run ``prepare`` on every rank and return every rank's value, in rank order.

    One collective. Raises on every rank when any rank failed: the rank's own exception where there is
    one, else `PeerError` with the first failing rank's message.
    """
    value, failure = _attempt(prepare)
    if group_size(group) == 1:
        if failure is not None:
            raise failure
        return [cast(T, value)]
    payload, failure = _packed(value, failure)
    received: list[Any] = [None] * group_size(group)
    dist.all_gather_object(received, payload, group=group)
    if failure is not None:
        raise failure
    for rank, (error, _) in enumerate(received):
        if error is not None:
            raise PeerError(f"rank {rank} of the process group failed: {error}")
    return [pickle.loads(data) for _, data in received]  # noqa: S301 - from ranks of this very run


def everywhere(step: Callable[[], T], group: dist.ProcessGroup | None) -> T:
    """Run ``step`` on every rank and return this rank's own value; raises on every rank when any rank failed."""
    own: list[T] = []
    gather(lambda: own.append(step()), group)
    return own[0]


def on_rank_zero(step: Callable[[], None], group: dist.ProcessGroup | None) -> None:
    """Run ``step`` on the group's rank 0 while the others wait for its outcome.

    One collective, which is also the barrier: no rank returns before rank 0 has finished. When ``step``
    raises, rank 0 raises the same exception and every other rank raises `PeerError`.
    """
    failure: BaseException | None = None
    outcome: list[str | None] = [None]
    if is_rank_zero(group):
        _, failure = _attempt(step)
        outcome = [_described(failure)]
    if group_size(group) > 1:
        source = 0 if group is None else dist.get_global_rank(group, 0)
        dist.broadcast_object_list(outcome, src=source, group=group)
    if failure is not None:
        raise failure
    if outcome[0] is not None:
        raise PeerError(f"rank 0 of the process group failed: {outcome[0]}")


def _initialised() -> bool:
    if dist.is_available() and dist.is_initialized():
        return True
    # Without a group every process takes itself for rank 0, and they would write the same files at the same time.
    if (rank := os.environ.get("RANK", "0")) != "0":
        raise RuntimeError(
            f"RANK is {rank}, but torch.distributed is not initialised: save on rank 0, or initialise it"
        )
    return False


def _attempt(step: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    # BaseException: an interrupt on one rank would strand the others just as an error does.
    try:
        return step(), None
    except BaseException as error:  # noqa: BLE001 - it is raised again, on every rank
        return None, error


def _packed(value: Any, failure: BaseException | None) -> tuple[tuple[str | None, bytes], BaseException | None]:
    if failure is None:
        try:
            return (None, pickle.dumps(value)), None
        except Exception as error:  # noqa: BLE001 - pickling runs foreign code; raised again as above
            failure = error
    return (_described(failure), b""), failure


def _described(failure: BaseException | None) -> str | None:
    if failure is None:
        return None
    try:
        return f"{type(failure).__name__}: {failure}"
    except Exception:  # noqa: BLE001 - a message that cannot be made is no reason not to tell the others
        return type(failure).__name__
