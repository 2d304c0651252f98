# SPDX-License-Identifier: Apache-2.0
"""Bring tensors to the rank that writes them, one at a time, and to no other rank.

Every rank describes what it holds (`Holdings`); from the distinct descriptions comes one list of `Transfer`, the same
on every rank; then all ranks go through it side by side (`gathered`). A sharded tensor travels as its shards, each
byte once. Ranks that hold copies are taken to hold equal ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist

from .holdings import Box, Held, Holdings, Source, holdings, pieces
from .ranks import (
    agree,
    attempt,
    everywhere,
    group_device,
    group_rank,
    group_ranks,
    group_size,
    interrupts_into,
    on_rank_zero,
    receive,
    send,
    share,
)


@dataclass(frozen=True)
class Transfer:
    """One tensor on its way: all of ``sources`` have the whole of it, and the first is what ``writer`` gets."""

    name: str
    held: Held
    sources: tuple[Source, ...]
    writer: int = 0


def agreed_order(
    group: dist.ProcessGroup | None,
    contents: Sequence[tuple[list[int], Holdings]],
    pp_group: dist.ProcessGroup | None = None,
) -> list[Transfer]:
    """One transfer to rank 0 for each tensor that any rank holds, sorted by name; the same list on every rank.

    Args:
        group: the ranks between which tensors travel.
        contents: the distinct holdings, as `agree` returns them.
        pp_group: pipeline group: each of its ranks that holds a tensor is a source of its own, so that their values are
            compared. Without it one source is taken.

    Raises:
        ValueError: ranks hold tensors of one name with another shape or dtype (clause RANK-011).
        PeerError: another rank failed.
    """
    if pp_group is None and len(contents) == 1:  # the same on every rank
        return _transfers(contents, ())
    stages = [] if pp_group is None else group_ranks(pp_group)
    ranks = group_ranks(group)
    compared = tuple(ranks.index(rank) for rank in stages)
    return share(group, on_rank_zero(group, _transfers, contents, compared))


def gathered(
    tensors: Mapping[str, torch.Tensor],
    order: Iterable[Transfer],
    group: dist.ProcessGroup | None,
    keep: Callable[[str, torch.Tensor, int], None],
    in_place: bool = False,
) -> None:
    """Go through the transfers, on all ranks in one order; ``keep`` gets each tensor on its writer.

    What a rank cannot read or keep does not stop it: the others count on its part in every later transfer. The first
    error is raised at the end, on every rank.

    Args:
        tensors: what this rank holds.
        order: the transfers, the same on every rank.
        group: the ranks.
        keep: called with name, tensor on the CPU, which may be the live one, and the byte at which it starts.
        in_place: shards that are bytes in a row do not travel: each rank keeps its own.

    Raises:
        ValueError: two sources of a tensor have different values.
        PeerError: another rank failed.
    """
    order = list(order)
    walk = _Walk(group, in_place, everywhere(group, _spare, group, order, in_place))
    with interrupts_into(walk.failures):
        for transfer in order:
            tensor = tensors.get(transfer.name)
            found = [walk.moved(tensor, transfer, source) for source in transfer.sources]
            if found[0] and not walk.failures:
                _, failure = attempt(_kept, transfer, found, keep)
                walk.note(failure)
    everywhere(group, raise_first, walk.failures)


def united_stages(local: dict[str, torch.Tensor], group: dist.ProcessGroup) -> dict[str, torch.Tensor]:
    """The tensors of all ranks of a pipeline group, whole, on every rank; raises as `gathered`."""
    _, contents = agree(group, lambda: (None, holdings(local, group)))
    order = agreed_order(group, contents, pp_group=group)
    united: dict[str, torch.Tensor] = {}
    for writer in range(group_size(group)):  # each in turn keeps what arrives
        mine = [replace(one, writer=writer) for one in order]
        gathered(local, mine, group, lambda name, tensor, _start: united.update({name: tensor}))
    return united


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, sharing its memory."""
    return tensor.reshape(-1).view(torch.uint8)


def _transfers(contents: Sequence[tuple[list[int], Holdings]], compared: Sequence[int]) -> list[Transfer]:
    found: dict[str, Transfer] = {}
    for ranks, held_there in contents:
        mine = [rank for rank in ranks if rank in compared] or ranks
        for name, held in held_there:
            whole = [Source((rank,)) for rank in mine] if compared else [Source(tuple(mine))]
            sources = (held.source,) if held.source.ranks else tuple(whole)
            earlier = found.get(name)
            if earlier is None:
                found[name] = Transfer(name, held, sources)
                continue
            if earlier.held[:2] != held[:2]:
                raise ValueError(
                    f"{name!r} must be one tensor on all ranks, got {earlier.held.dtype} {earlier.held.shape} on rank "
                    f"{min(earlier.sources[0].ranks)} and {held.dtype} {held.shape} on rank {ranks[0]}"
                )
            if not set(ranks).isdisjoint(compared):
                found[name] = Transfer(name, held, tuple(dict.fromkeys((*earlier.sources, *sources))))
    return [found[name] for name in sorted(found)]


def raise_first(failures: Sequence[BaseException]) -> None:
    """Raise the first failure, if there is any."""
    if failures:
        raise failures[0]


def _spare(group: dist.ProcessGroup | None, order: Iterable[Transfer], in_place: bool) -> torch.Tensor:
    """Room for the largest message, which a rank without memory sends or receives in place of its own."""
    largest = 0
    for transfer in order:
        held = transfer.held
        for source in transfer.sources:
            (_, box), *others = pieces(_whole_source(source, transfer.writer), held.shape)[0]
            if not others:
                largest = max(largest, 0 if transfer.writer in source.ranks else held.nbytes)
            elif not (in_place and _is_in_rows(box, held)):
                largest = max(largest, _nbytes(box, held))
    return torch.empty(largest, dtype=torch.uint8, device=group_device(group) if largest else "cpu")


class _Walk:
    """This rank's way through the transfers: it sends and receives every message, whatever fails here meanwhile.

    Attributes:
        failures: what has failed, in order.
    """

    def __init__(self, group: dist.ProcessGroup | None, in_place: bool, spare: torch.Tensor) -> None:
        self.failures: list[BaseException] = []
        self._group, self._in_place, self._spare = group, in_place, spare
        self._rank = group_rank(group)

    def note(self, failure: BaseException | None) -> None:
        """Keep a failure, if it is one."""
        self.failures += [] if failure is None else [failure]

    def moved(self, tensor: torch.Tensor | None, transfer: Transfer, source: Source) -> list[tuple[torch.Tensor, int]]:
        """Move a tensor of one source: what this rank is to keep of it, and the byte at which each piece starts."""
        writer, held = transfer.writer, transfer.held
        if 0 in held.shape:
            return [(torch.empty(held.shape, dtype=held.dtype), 0)] if self._rank == writer else []
        if source.mesh and source.placements is None and self._rank in source.ranks:
            # A collective of the mesh: every rank of it takes part, and has the whole for a moment.
            tensor = self._own(tensor, held, whole=True)
        source = _whole_source(source, writer)
        mine, own_piece = pieces(source, held.shape)
        if self._rank != writer:
            mine = [mine[own_piece[self._rank]]] if self._rank in own_piece else []
        into: torch.Tensor | None = None
        found = []
        for at, (ranks, box) in enumerate(mine):
            sender = writer if writer in ranks else ranks[0]
            stays = sender == writer if len(own_piece) == len(ranks) else self._in_place and _is_in_rows(box, held)
            if self._rank not in (sender, writer) or any(length == 0 for _, length in box):
                continue
            piece = self._own(tensor, held) if self._rank == sender else None
            if stays:
                if piece is not None:
                    found.append((piece, box[0][0] * held.nbytes // held.shape[0] if box else 0))
            elif self._rank != writer:
                self._send(piece, _nbytes(box, held), writer)
            else:
                into = self._room(held) if at == 0 else into
                self._put(into, box, held, piece, sender)
        return found if into is None else [(into, 0)]

    def _own(self, tensor: torch.Tensor | None, held: Held, whole: bool = False) -> torch.Tensor | None:
        """What this rank has of a tensor, in the dtype of the file; None where it cannot be read."""
        piece, failure = attempt(_piece, tensor, held.dtype, whole)
        self.note(failure)
        return cast("torch.Tensor | None", piece)

    def _room(self, held: Held) -> torch.Tensor | None:
        room, failure = attempt(torch.empty, held.shape, dtype=held.dtype)
        self.note(failure)
        return cast("torch.Tensor | None", room)

    def _send(self, piece: torch.Tensor | None, nbytes: int, writer: int) -> None:
        content, failure = (None, None) if piece is None else attempt(_message, piece, self._spare.device)
        self.note(failure)
        send(self._group, self._spare[:nbytes] if content is None else content, writer)

    def _put(self, into: torch.Tensor | None, box: Box, held: Held, piece: torch.Tensor | None, sender: int) -> None:
        for dimension, (start, length) in enumerate(box):
            into = None if into is None else into.narrow(dimension, start, length)
        if sender == self._rank:
            if into is not None and piece is not None:
                into.copy_(piece)
            return
        # Rows of a tensor lie together: they can be received where they belong.
        direct = into is not None and into.is_contiguous() and self._spare.device.type == "cpu"
        arriving = flat(into) if into is not None and direct else self._spare[: _nbytes(box, held)]
        receive(self._group, arriving, sender)
        if into is not None and not direct:
            into.copy_(arriving.view(held.dtype).view(into.shape))


def _whole_source(source: Source, writer: int) -> Source:
    """Where only torch can put the shards together: one rank of the mesh, which will have the whole."""
    if source.mesh and source.placements is None:
        return Source((writer if writer in source.ranks else source.ranks[0],))
    return source


def _is_in_rows(box: Box, held: Held) -> bool:
    return all(length == size for (_, length), size in zip(box[1:], held.shape[1:], strict=True))


def _nbytes(box: Box, held: Held) -> int:
    return math.prod(length for _, length in box) * held.dtype.itemsize


def _message(piece: torch.Tensor, device: torch.device) -> torch.Tensor:
    return flat(piece.contiguous()).to(device)


def _piece(tensor: Any, dtype: torch.dtype, whole: bool) -> torch.Tensor:
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor() if whole else tensor.to_local()
    return cast(torch.Tensor, tensor.to(dtype))


def _kept(
    transfer: Transfer,
    found: Sequence[list[tuple[torch.Tensor, int]]],
    keep: Callable[[str, torch.Tensor, int], None],
) -> None:
    for source, other in zip(transfer.sources[1:], found[1:], strict=True):
        if not torch.equal(flat(found[0][0][0].contiguous()), flat(other[0][0].contiguous())):
            raise ValueError(
                f"{transfer.name!r} must have one value in all stages, got another on rank {source.ranks[0]}: is "
                "pp_group really the pipeline group of this model?"
            )
    for tensor, start in found[0]:
        keep(transfer.name, tensor.cpu(), start)
