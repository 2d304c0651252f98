# SPDX-License-Identifier: Apache-2.0
"""What a rank holds of the tensors that are saved: which of them, and which piece of each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
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
        places = {rank: at for at, rank in enumerate(group_ranks(group))}
        ranks = mesh.mesh.flatten().tolist()
        if outside := set(ranks) - places.keys():
            raise ValueError(
                f"process_group must hold the whole model, got one without rank {min(outside)}, which has a part of "
                f"{name!r}: pass a larger one"
            )
        members[mesh] = tuple(places[rank] for rank in ranks)
    # By the exact type: the strided shards of FSDP over tensor parallel are a kind of their own (clause RANK-015).
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
