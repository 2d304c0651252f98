# SPDX-License-Identifier: Apache-2.0
"""Do a step on one rank or on all, and let every rank know how it went.

A save is a collective act: a rank that fails alone leaves the others waiting for the whole group timeout
(clause RANK-003). The functions here therefore turn an error into data, share it, and raise it everywhere.

Ranks share as little as they can: one reduction of a few numbers says whether any rank failed and whether all hold
the same. Contents travel only from one rank of each distinct content to rank 0, so that what any other rank receives
does not grow with the number of ranks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")

_NOBODY = 2**62
_WORDS, _WORD_BYTES = 5, 6  # of a digest; words of 48 bits can be negated


class PeerError(RuntimeError):
    """Another rank of the process group failed, or is gone.

    The message names the rank and carries its error; or it names the group and what was being done.
    """


def is_member(group: dist.ProcessGroup | None) -> bool:
    """Whether this process takes part in ``group`` (always true without torch.distributed)."""
    return cast(object, group) is not dist.GroupMember.NON_GROUP_MEMBER


def group_size(group: dist.ProcessGroup | None) -> int:
    """Number of ranks in ``group`` (None: the default group); 1 when torch.distributed is not initialised."""
    return dist.get_world_size(group) if _initialised() else 1


def group_rank(group: dist.ProcessGroup | None) -> int:
    """This process's rank in ``group`` itself, which need not be its global rank."""
    return dist.get_rank(group) if _initialised() else 0


def is_rank_zero(group: dist.ProcessGroup | None) -> bool:
    """Whether this process is rank 0 of ``group`` itself, which need not be global rank 0 (clause RANK-006)."""
    return group_rank(group) == 0


def group_ranks(group: dist.ProcessGroup | None) -> list[int]:
    """The global ranks of ``group``, in the order of their ranks in it."""
    # Named: torch before 2.8 does not take None.
    return dist.get_process_group_ranks(dist.group.WORLD if group is None else group)


def group_device(group: dist.ProcessGroup | None) -> torch.device:
    """Where tensors have to be for the collectives of ``group``: the CPU where it can, else this rank's device."""
    backends = dict(pair.split(":") for pair in dist.get_backend_config(group).split(","))
    if "cpu" in backends:
        return torch.device("cpu")
    kind = next(iter(backends))
    return torch.device(kind, getattr(torch, kind).current_device())


def everywhere(group: dist.ProcessGroup | None, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``step`` on every rank and return this rank's own value. One reduction.

    Raises on every rank when any rank failed (clause RANK-007): the rank's own exception where there is one, else
    `PeerError` with the first failing rank's message.
    """
    value, failure = attempt(step, *args, **kwargs)
    _settle(group, step, failure)
    return cast(T, value)


def on_rank_zero(group: dist.ProcessGroup | None, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``step`` on the group's rank 0 alone (clause RANK-001) while the others wait; raises as `everywhere`.

    One reduction, which is also the barrier: no rank returns before rank 0 has finished (clause RANK-002). The value of
    ``step`` is for rank 0; the others get None.
    """
    value, failure = attempt(step, *args, **kwargs) if is_rank_zero(group) else (None, None)
    _settle(group, step, failure)
    return cast(T, value)


def agree(
    group: dist.ProcessGroup | None, step: Callable[P, tuple[T, V]], *args: P.args, **kwargs: P.kwargs
) -> tuple[T, list[tuple[list[int], V]]]:
    """Run ``step`` on every rank, and find out which ranks have the same to say.

    Args:
        group: the ranks that take part.
        step: returns what this rank keeps for itself, and what it has to say: plain values, whose ``repr`` is the same
            exactly when they are equal.
        *args: of ``step``.
        **kwargs: of ``step``.

    Returns:
        What this rank keeps; and the distinct contents with the ranks that have them, in the order of the first of
        these. The contents are for rank 0: where they are not the same everywhere, any other rank gets an empty list.

    Raises as `everywhere`.
    """
    size = group_size(group)

    def digested() -> tuple[tuple[T, V], bytes]:
        pair = step(*args, **kwargs)
        return pair, hashlib.sha256(repr(pair[1]).encode()).digest() if size > 1 else b""

    found, failure = attempt(digested)
    same = _settle(group, step, failure, found[1] if found else b"")
    (own, said), digest = cast("tuple[tuple[T, V], bytes]", found)
    if same:
        return own, [(list(range(size)), said)]
    with _together(group, step):
        return own, _distinct(group, digest, said)


def attempt(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[Any, BaseException | None]:
    """The value of ``step`` and None, or None and what it raised."""
    # BaseException: an interrupt on one rank would strand the others just as an error does.
    try:
        return step(*args, **kwargs), None
    except BaseException as error:  # noqa: BLE001 - it is raised again, on every rank
        return None, error


def share(group: dist.ProcessGroup | None, value: T, rank: int = 0) -> T:
    """The value of one rank on every rank."""
    values = [value]
    if group_size(group) > 1:
        with _together(group, share):
            dist.broadcast_object_list(values, src=_global(group, rank), group=group)
    return values[0]


def send(group: dist.ProcessGroup | None, content: torch.Tensor, rank: int) -> None:
    """Send bytes (uint8, of one dimension, on `group_device`) to a rank of ``group``, which expects as many."""
    with _together(group, send):
        dist.send(content, dst=_global(group, rank), group=group)


def receive(group: dist.ProcessGroup | None, into: torch.Tensor, rank: int) -> None:
    """Receive bytes from a rank of ``group`` into a tensor (uint8, of one dimension, on `group_device`)."""
    with _together(group, receive):
        dist.recv(into, src=_global(group, rank), group=group)


@contextlib.contextmanager
def interrupts_into(failures: list[BaseException]) -> Iterator[None]:
    """Keep a Ctrl-C among this rank's failures until ranks agree next: the others count on its part meanwhile.

    A second one is raised at once. Handlers that are not Python's own, and threads besides the main one, stay as they
    are.
    """
    own = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not own:
        yield
        return

    def keep(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, own)
        failures.append(KeyboardInterrupt())

    signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, own)


@contextlib.contextmanager
def _together(group: dist.ProcessGroup | None, step: Callable[..., Any]) -> Iterator[None]:
    """Say what was being done where torch.distributed fails: its own error is that of a connection (RANK-016)."""
    try:
        yield
    except RuntimeError as error:
        doing = getattr(step, "__qualname__", repr(step)).rpartition("<locals>.")[2]
        raise PeerError(
            f"all ranks {group_ranks(group)} must stay until the save is done, got an end of their "
            f"connection while in {doing}: look for a rank that was killed or left. {error}"
        ) from error


def _settle(
    group: dist.ProcessGroup | None, step: Callable[..., Any], failure: BaseException | None, digest: bytes = b""
) -> bool:
    """Raise everywhere if any rank failed; else whether all ranks have the same digest."""
    if group_size(group) == 1:
        if failure is not None:
            raise failure
        return True
    words = [int.from_bytes(digest[at * _WORD_BYTES : (at + 1) * _WORD_BYTES], "big") for at in range(_WORDS)]
    # Who failed by itself comes before who has heard of it from another group.
    heard = group_size(group) if isinstance(failure, PeerError) else 0
    failed = _NOBODY if failure is None else group_rank(group) + heard
    # The least of a number and of its negative, over all ranks: they are the same when all have one number.
    numbers = torch.tensor([failed, *words, *(-word for word in words)], device=group_device(group))
    with _together(group, step):
        dist.all_reduce(numbers, op=dist.ReduceOp.MIN, group=group)
    first, *least = numbers.tolist()
    if first == _NOBODY:
        return [-word for word in least[_WORDS:]] == least[:_WORDS]
    first %= group_size(group)
    message = share(group, _described(failure), first)
    if failure is not None and (not heard or first == group_rank(group)):
        raise failure
    raise PeerError(f"rank {first} of the process group failed: {message}")


def _distinct(group: dist.ProcessGroup | None, digest: bytes, said: V) -> list[tuple[list[int], V]]:
    """On rank 0 the distinct contents and who has them; one rank of each sends it."""
    rank, zero = group_rank(group), _global(group, 0)
    digests: list[Any] | None = [None] * group_size(group) if rank == 0 else None
    dist.gather_object(digest, digests, dst=zero, group=group)
    first: list[Any] = [None]
    firsts = None if digests is None else [digests.index(one) == at for at, one in enumerate(digests)]
    dist.scatter_object_list(first, firsts, src=zero, group=group)
    if digests is None:
        if first[0]:
            dist.send_object_list([said], dst=zero, group=group)
        return []
    found = []
    for at in (at for at, one in enumerate(digests) if digests.index(one) == at):
        content: list[Any] = [said]
        if at:
            dist.recv_object_list(content, src=_global(group, at), group=group)
        found.append(([other for other, one in enumerate(digests) if one == digests[at]], content[0]))
    return found


def _global(group: dist.ProcessGroup | None, rank: int) -> int:
    return rank if group is None else dist.get_global_rank(group, rank)


def _initialised() -> bool:
    if dist.is_available() and dist.is_initialized():
        return True
    # Without a group every process takes itself for rank 0: all would write the same files at once (clause RANK-008).
    if (rank := os.environ.get("RANK", "0")) != "0":
        raise RuntimeError(
            f"torch.distributed must be initialised where there are several ranks, got RANK={rank} without it: save on "
            "rank 0 alone, or initialise it"
        )
    return False


def _described(failure: BaseException | None) -> str:
    try:
        return f"{type(failure).__name__}: {failure}"
    except Exception:  # noqa: BLE001 - a message that cannot be made is no reason not to tell the others
        return type(failure).__name__
