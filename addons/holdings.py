# SPDX-License-Identifier: Apache-2.0
"""What a rank holds of the tensors that are saved: which of them, and which piece of each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .ranks import group_ranks

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

    ranks: tuple[int, ...] = ()
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
        source = _mesh_source(name, tensor, group, members) if hasattr(tensor, "device_mesh") else Source()
        found.append((name, Held(saved_dtype(tensor, dtype), tuple(tensor.shape), source)))
    return tuple(found)


def check_readable(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError for a tensor that has no values to write, or not in rows: on the meta device, or sparse."""
    for name, tensor in sorted(tensors.items()):
        if tensor.is_meta or tensor.layout is not torch.strided:
            raise ValueError(
                f"{name!r} must hold its values in a dense tensor, got one on {tensor.device} of layout "
                f"{tensor.layout}: load or convert it before saving"
            )


def saved_dtype(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of a tensor in the file: ``dtype``, if there is one and the tensor holds plain floating-point numbers.

    Those of eight bits or fewer are quantised, and mean nothing without their scales (clause IDX-013).
    """
    plain = tensor.is_floating_point() and tensor.dtype.itemsize >= 2
    return dtype if dtype is not None and plain else tensor.dtype


@lru_cache(maxsize=1024)
def pieces(source: Source, shape: tuple[int, ...]) -> tuple[list[tuple[tuple[int, ...], Box]], dict[int, int]]:
    """The distinct pieces of a tensor, each with the ranks that hold it; and rank -> its piece."""
    if not source.mesh:
        return [(source.ranks, tuple((0, size) for size in shape))], dict.fromkeys(source.ranks, 0)
    found: dict[Box, list[int]] = {}
    for rank, place in zip(source.ranks, itertools.product(*map(range, source.mesh)), strict=True):
        found.setdefault(piece_box(shape, source.placements or (), source.mesh, place), []).append(rank)
    own = {rank: at for at, ranks in enumerate(found.values()) for rank in ranks}
    return [(tuple(ranks), box) for box, ranks in found.items()], own


def piece_box(shape: tuple[int, ...], cut: Sequence[int | None], mesh: Sequence[int], place: Sequence[int]) -> Box:
    """The piece of the rank at a place of the mesh: cut as by `torch.chunk`, for one mesh dimension after another."""
    box = [(0, size) for size in shape]
    for dimension, size, at in zip(cut, mesh, place, strict=True):
        if dimension is not None:
            start, length = box[dimension]
            chunk = -(-length // size)
            first = min(length, chunk * at)
            box[dimension] = (start + first, min(chunk, length - first))
    return tuple(box)


def cuts(tensor: Any) -> list[tuple[int, int | None]] | None:
    """How a mesh cuts a DTensor: its dimensions in the order in which they cut, each with the tensor's (None: copies).

    None where only torch can put the pieces together.
    """
    from torch.distributed.tensor import Replicate, Shard

    found = list(enumerate(one.dim % tensor.ndim if hasattr(one, "dim") else None for one in tensor.placements))
    # By the exact type: the strided shards of FSDP2 over tensor parallel are cut out of the later dimensions' shards
    # (clause RANK-015).
    odd = [at for at, one in enumerate(tensor.placements) if type(one) not in (Shard, Replicate)]
    if not odd:
        return found
    sizes, (at, dimension) = tensor.device_mesh.mesh.shape, found[odd[0]]
    if len(odd) > 1 or type(tensor.placements[at]).__name__ != "_StridedShard":
        return None
    inner = [other for other, one in found[at + 1 :] if one == dimension]
    parts = math.prod(sizes[other] for other, one in found if one == dimension)
    if (
        tensor.placements[at].split_factor != math.prod(sizes[other] for other in inner)
        or tensor.shape[dimension] % parts
    ):
        return None
    return [one for one in found if one[0] != at] + [(at, dimension)]


def _mesh_source(
    name: str, tensor: Any, group: dist.ProcessGroup | None, members: dict[Any, tuple[int, ...]]
) -> Source:
    mesh, order = tensor.device_mesh, cuts(tensor)
    axes = [at for at, _ in order or enumerate(mesh.mesh.shape)]
    key = (mesh, tuple(axes))
    if key not in members:
        places = {rank: at for at, rank in enumerate(group_ranks(group))}
        ranks = mesh.mesh.permute(axes).flatten().tolist()
        if outside := set(ranks) - places.keys():
            raise ValueError(
                f"process_group must hold the whole model, got one without rank {min(outside)}, which has a part of "
                f"{name!r}: pass a larger one"
            )
        members[key] = tuple(places[rank] for rank in ranks)
    dims = None if order is None else tuple(dimension for _, dimension in order)
    source = Source(members[key], tuple(mesh.mesh.shape[at] for at in axes), dims)
    if dims is not None and tensor.numel():
        place = [mesh.get_coordinate()[at] for at in axes]
        expected = [length for _, length in piece_box(tuple(tensor.shape), dims, source.mesh, place)]
        if expected != list(tensor.to_local().shape):
            raise ValueError(
                f"the shard of {name!r} must have the shape {expected} by its placement, got "
                f"{list(tensor.to_local().shape)}: shard it with distribute_tensor or fully_shard"
            )
    return source
