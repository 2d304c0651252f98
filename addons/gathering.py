# SPDX-License-Identifier: Apache-2.0
"""Bring tensors to the rank that writes them, one at a time, and to no other rank.

Every rank describes what it holds (`Holdings`); from the distinct descriptions comes one list of `Transfer`, the same
on every rank; then all ranks go through it side by side (`gathered`). A sharded tensor travels as its shards, each
byte once. Ranks that hold copies are taken to hold equal ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist

from .ranks import agree, attempt, everywhere, group_rank, group_size, on_rank_zero, receive, send, share

Box = tuple[tuple[int, int], ...]
"""Where a piece of a tensor is: (start, length) in each dimension."""


class Source(NamedTuple):
    """Which ranks of the group hold a tensor, and how.

    Attributes:
        ranks: each holds the whole tensor; or, with a ``mesh``, its ranks in row-major order.
        mesh: the shape of the device mesh.
        placements: for each dimension of the mesh the dimension of the tensor that is sharded over it, or None;
            None as a whole where only torch can put the shards together.
    """

    ranks: tuple[int, ...]
    mesh: tuple[int, ...] = ()
    placements: tuple[int | None, ...] | None = ()


class Held(NamedTuple):
    """A tensor of one rank: its dtype in the file, its global shape, its source (without ranks where it is whole)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    source: Source

    @property
    def nbytes(self) -> int:
        """The size of the whole tensor in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


Holdings = tuple[tuple[str, Held], ...]
"""What one rank holds: the tensors by name, sorted."""


@dataclass(frozen=True)
class Transfer:
    """One tensor on its way: all of ``sources`` have the whole of it, and the first is what ``writer`` gets."""

    name: str
    held: Held
    sources: tuple[Source, ...]
    writer: int = 0


def holdings(
    tensors: Mapping[str, torch.Tensor], group: dist.ProcessGroup | None, dtype: torch.dtype | None = None
) -> Holdings:
    """Describe the tensors of this rank, sorted by name.

    Args:
        tensors: plain ones, or DTensors.
        group: the ranks between which they will travel.
        dtype: floating-point tensors are cast to it on the way.

    Raises:
        ValueError: a rank of a tensor's mesh is not in ``group``, or a shard is not where its placement says.
    """
    members: dict[Any, tuple[int, ...]] = {}
    found = []
    for name, tensor in sorted(tensors.items()):
        source = _mesh_source(name, tensor, group, members) if hasattr(tensor, "device_mesh") else Source(())
        found.append((name, Held(saved_dtype(tensor, dtype), tuple(tensor.shape), source)))
    return tuple(found)


def saved_dtype(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of a tensor in the file: ``dtype``, if there is one and the tensor holds plain floating-point numbers.

    Those of eight bits or fewer are quantised, and mean nothing without their scales (clause IDX-013).
    """
    plain = tensor.is_floating_point() and tensor.dtype.itemsize >= 2
    return dtype if dtype is not None and plain else tensor.dtype


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
        ValueError: ranks hold tensors of one name with another shape or dtype.
        PeerError: another rank failed.
    """
    if pp_group is None and len(contents) == 1:  # the same on every rank
        return _transfers(contents, ())
    stages = [] if pp_group is None else dist.get_process_group_ranks(pp_group)
    ranks = dist.get_process_group_ranks(group)
    compared = tuple(ranks.index(rank) for rank in stages)
    return share(group, on_rank_zero(group, _transfers, contents, compared))


def gathered(
    tensors: Mapping[str, torch.Tensor],
    order: Iterable[Transfer],
    group: dist.ProcessGroup | None,
    keep: Callable[[str, torch.Tensor], None],
) -> None:
    """Go through the transfers, on all ranks in one order; ``keep`` gets each tensor on its writer, on the CPU.

    What a rank cannot read or keep does not stop it: the others count on its part in every later transfer. The first
    error is raised at the end, on every rank.

    Args:
        tensors: what this rank holds.
        order: the transfers, the same on every rank.
        group: the ranks.
        keep: called with name and whole tensor, which may be the live one.

    Raises:
        ValueError: two sources of a tensor have different values.
        PeerError: another rank failed.
    """
    failures: list[BaseException] = []
    rank = group_rank(group)
    for transfer in order:
        wholes = [_moved(tensors.get(transfer.name), transfer, source, group, failures) for source in transfer.sources]
        if rank == transfer.writer and not failures:
            _, failure = attempt(_kept, transfer, cast("list[torch.Tensor]", wholes), keep)
            failures += [failure] if failure is not None else []
    everywhere(group, _raised, failures)


def united_stages(local: dict[str, torch.Tensor], group: dist.ProcessGroup) -> dict[str, torch.Tensor]:
    """The tensors of all ranks of a pipeline group, whole, on every rank; raises as `gathered`."""
    _, contents = agree(group, lambda: (None, holdings(local, group)))
    order = agreed_order(group, contents, pp_group=group)
    united: dict[str, torch.Tensor] = {}
    for writer in range(group_size(group)):  # each in turn keeps what arrives
        gathered(local, [replace(one, writer=writer) for one in order], group, united.__setitem__)
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


def _kept(transfer: Transfer, wholes: list[torch.Tensor], keep: Callable[[str, torch.Tensor], None]) -> None:
    first, *others = wholes
    for source, other in zip(transfer.sources[1:], others, strict=True):
        if not torch.equal(flat(first.contiguous()), flat(other.contiguous())):
            raise ValueError(
                f"{transfer.name!r} must have one value in all stages, got another on rank {source.ranks[0]}: is "
                "pp_group really the pipeline group of this model?"
            )
    keep(transfer.name, first)


def _raised(failures: list[BaseException]) -> None:
    if failures:
        raise failures[0]


def _moved(
    tensor: torch.Tensor | None,
    transfer: Transfer,
    source: Source,
    group: dist.ProcessGroup | None,
    failures: list[BaseException],
) -> torch.Tensor | None:
    """The whole tensor on the writer, from one source; this rank's part in getting it there."""
    rank, writer, held = group_rank(group), transfer.writer, transfer.held
    if 0 in held.shape:
        return torch.empty(held.shape, dtype=held.dtype)
    if source.mesh and source.placements is None:
        # A collective of the mesh: every rank of it takes part, and has the whole for a moment.
        if rank in source.ranks:
            tensor = _own(tensor, held, held.shape, failures, whole=True)
        source = Source((writer if writer in source.ranks else source.ranks[0],))
    pieces, own_piece = _pieces(source, held.shape)
    if rank != writer:
        pieces = [pieces[own_piece[rank]]] if rank in own_piece else []
    into: torch.Tensor | None = None
    for ranks, box in pieces:
        sender, shape = writer if writer in ranks else ranks[0], tuple(length for _, length in box)
        if rank not in (sender, writer) or 0 in shape:
            continue
        piece = _own(tensor, held, shape, failures) if rank == sender else None
        if rank != writer:
            _send(piece, writer, group)
        elif piece is not None and shape == held.shape:
            return piece.cpu()
        else:
            into = torch.empty(held.shape, dtype=held.dtype) if into is None else into
            _put(into, box, piece, sender, group)
    return into


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


@lru_cache(maxsize=1024)
def _pieces(source: Source, shape: tuple[int, ...]) -> tuple[list[tuple[tuple[int, ...], Box]], dict[int, int]]:
    """The distinct pieces of a tensor, each with the ranks that hold it; and rank -> its piece."""
    if not source.mesh:
        return [(source.ranks, tuple((0, size) for size in shape))], dict.fromkeys(source.ranks, 0)
    found: dict[Box, list[int]] = {}
    for rank, place in zip(source.ranks, itertools.product(*map(range, source.mesh)), strict=True):
        found.setdefault(_box(source, shape, place), []).append(rank)
    own = {rank: at for at, ranks in enumerate(found.values()) for rank in ranks}
    return [(tuple(ranks), box) for box, ranks in found.items()], own


def _box(source: Source, shape: tuple[int, ...], place: tuple[int, ...]) -> Box:
    """The piece of the rank at a place of the mesh: cut as by `torch.chunk`, for one mesh dimension after another."""
    box = [(0, size) for size in shape]
    for dimension, size, at in zip(source.placements or (), source.mesh, place, strict=True):
        if dimension is not None:
            start, length = box[dimension]
            chunk = -(-length // size)
            first = min(length, chunk * at)
            box[dimension] = (start + first, min(chunk, length - first))
    return tuple(box)


def _mesh_source(
    name: str, tensor: Any, group: dist.ProcessGroup | None, members: dict[Any, tuple[int, ...]]
) -> Source:
    from torch.distributed.tensor import Replicate, Shard

    mesh = tensor.device_mesh
    if mesh not in members:
        places = {rank: at for at, rank in enumerate(dist.get_process_group_ranks(group))}
        ranks = mesh.mesh.flatten().tolist()
        if outside := set(ranks) - places.keys():
            raise ValueError(
                f"process_group must hold the whole model, got one without rank {min(outside)}, which has a part of "
                f"{name!r}: pass a larger one"
            )
        members[mesh] = tuple(places[rank] for rank in ranks)
    # By the exact type: the strided shards of FSDP over tensor parallel are a kind of their own.
    plain = all(type(one) in (Shard, Replicate) for one in tensor.placements)
    dims = tuple(one.dim % tensor.ndim if type(one) is Shard else None for one in tensor.placements)
    source = Source(members[mesh], tuple(mesh.mesh.shape), dims if plain else None)
    if plain and tensor.numel():
        expected = [length for _, length in _box(source, tuple(tensor.shape), tuple(mesh.get_coordinate()))]
        if expected != list(tensor.to_local().shape):
            raise ValueError(
                f"the shard of {name!r} must have the shape {expected} by its placement, got "
                f"{list(tensor.to_local().shape)}: shard it with distribute_tensor or fully_shard"
            )
    return source
