# SPDX-License-Identifier: Apache-2.0
"""Bring tensors to the rank that writes them, one at a time, and to no other rank.

Every rank describes what it holds (`Holdings`); from the distinct descriptions comes one list of `Transfer`, the same
on every rank; then all ranks go through it side by side (`gathered`). A sharded tensor travels as its shards, each
byte once. Ranks that hold copies are taken to hold equal ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist

from .holdings import Box, Held, Holdings, Source, holdings, pieces
from .ranks import agree, attempt, everywhere, group_rank, group_ranks, group_size, on_rank_zero, receive, send, share


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
    failures: list[BaseException] = []
    for transfer in order:
        tensor = tensors.get(transfer.name)
        found = [_moved(tensor, transfer, source, group, failures, in_place) for source in transfer.sources]
        if found[0] and not failures:
            _, failure = attempt(_kept, transfer, found, keep)
            failures += [failure] if failure is not None else []
    everywhere(group, _raised, failures)


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


def _raised(failures: list[BaseException]) -> None:
    if failures:
        raise failures[0]


def _moved(
    tensor: torch.Tensor | None,
    transfer: Transfer,
    source: Source,
    group: dist.ProcessGroup | None,
    failures: list[BaseException],
    in_place: bool,
) -> list[tuple[torch.Tensor, int]]:
    """What this rank is to keep of a tensor, from one source, and where it starts; this rank's part in moving it."""
    rank, writer, held = group_rank(group), transfer.writer, transfer.held
    if 0 in held.shape:
        return [(torch.empty(held.shape, dtype=held.dtype), 0)] if rank == writer else []
    if source.mesh and source.placements is None:
        # A collective of the mesh: every rank of it takes part, and has the whole for a moment.
        if rank in source.ranks:
            tensor = _own(tensor, held, held.shape, failures, whole=True)
        source = Source((writer if writer in source.ranks else source.ranks[0],))
    mine, own_piece = pieces(source, held.shape)
    if rank != writer:
        mine = [mine[own_piece[rank]]] if rank in own_piece else []
    into: torch.Tensor | None = None
    found = []
    for ranks, box in mine:
        sender, shape = writer if writer in ranks else ranks[0], tuple(length for _, length in box)
        stays = sender == writer if shape == held.shape else in_place and shape[1:] == held.shape[1:]
        if rank not in (sender, writer) or 0 in shape:
            continue
        piece = _own(tensor, held, shape, failures) if rank == sender else None
        if stays and piece is not None:
            found.append((piece, box[0][0] * held.nbytes // held.shape[0] if box else 0))
        elif rank != writer:
            _send(piece, writer, group)
        elif not stays:
            into = torch.empty(held.shape, dtype=held.dtype) if into is None else into
            _put(into, box, piece, sender, group)
    return found if into is None else [(into, 0)]


def _own(
    tensor: torch.Tensor | None, held: Held, shape: Sequence[int], failures: list[BaseException], whole: bool = False
) -> torch.Tensor:
    """What this rank has of a tensor, in the dtype of the file; zeros where it cannot be read."""
    piece, failure = attempt(_piece, tensor, held.dtype, whole)
    if failure is not None:
        failures.append(failure)
        return torch.zeros(tuple(shape), dtype=held.dtype)
    return cast(torch.Tensor, piece)


def _piece(tensor: Any, dtype: torch.dtype, whole: bool) -> torch.Tensor:
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor() if whole else tensor.to_local()
    return cast(torch.Tensor, tensor.to(dtype))


def _send(piece: torch.Tensor | None, writer: int, group: dist.ProcessGroup | None) -> None:
    if piece is not None:
        send(group, flat(piece.contiguous()), writer)


def _put(
    into: torch.Tensor, box: Box, piece: torch.Tensor | None, sender: int, group: dist.ProcessGroup | None
) -> None:
    for dimension, (start, length) in enumerate(box):
        into = into.narrow(dimension, start, length)
    if piece is not None:
        into.copy_(piece)
    else:
        # Rows of a tensor lie together: they can be received where they belong.
        buffer = into if into.is_contiguous() else torch.empty(into.shape, dtype=into.dtype)
        receive(group, flat(buffer), sender)
        if buffer is not into:
            into.copy_(buffer)
