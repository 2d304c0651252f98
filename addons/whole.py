# SPDX-License-Identifier: Apache-2.0
"""Put sharded tensors together on every rank that has a part of them: for conversions that no shard can do alone.

A rank that fails between two collectives leaves the others in the next one until the group's timeout. So ranks first
make all the room that a tensor takes, then agree that everybody has it, and only then exchange it. What fails on one
rank fails on all that share the tensor, and the next tensor is exchanged all the same (clause RANK-017).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from .gathering import flat, raise_first
from .holdings import cuts, piece_box
from .ranks import attempt, everywhere, group_device, interrupts_into

K = TypeVar("K")


def wholes(tensors: Mapping[K, torch.Tensor]) -> dict[K, torch.Tensor]:
    """The tensors, detached, each as a plain one. Collective over the meshes of the sharded ones, in their order.

    Raises:
        PeerError: another rank of a mesh failed. Any other error is this rank's own. Either comes behind the last
            tensor.
    """
    failures: list[BaseException] = []
    found: dict[K, torch.Tensor] = {}
    with interrupts_into(failures):
        for name, tensor in tensors.items():
            found[name], failure = attempt(_whole, tensor.detach())
            failures += [] if failure is None else [failure]
    raise_first(failures)
    return found


def _whole(tensor: Any) -> torch.Tensor:
    if not hasattr(tensor, "device_mesh"):
        return cast(torch.Tensor, tensor)
    order = cuts(tensor)
    if order is None:
        return cast(torch.Tensor, tensor.full_tensor())
    cut = [(at, dimension) for at, dimension in order if dimension is not None]
    groups = [tensor.device_mesh.get_group(at) for at, _ in cut]
    rooms, failure = attempt(_Rooms, tensor, groups, [dimension for _, dimension in cut])
    for group in groups:
        _, failure = attempt(everywhere, group, raise_first, [] if failure is None else [failure])
    raise_first([] if failure is None else [failure])
    return cast(_Rooms, rooms).exchanged(groups)


class _Rooms:
    """Everything that exchanging a tensor takes, allocated at once: nothing is left to fail on one rank alone."""

    def __init__(self, tensor: Any, groups: list[dist.ProcessGroup], cut: list[int]) -> None:
        local, shape = tensor.to_local(), tuple(tensor.shape)
        sizes = [dist.get_world_size(group) for group in groups]
        places = itertools.product(*map(range, sizes))
        self._boxes = [piece_box(shape, cut, sizes, place) for place in places]
        # The first piece is the largest, and each rank sends as much.
        self._piece = math.prod(length for _, length in self._boxes[0]) * local.element_size()
        first = torch.empty(self._piece, dtype=torch.uint8, device=_device(groups, local.device))
        self._rooms = [first]
        for size in reversed(sizes):
            self._rooms.append(first.new_empty(self._rooms[-1].numel() * size))
        first[: local.numel() * local.element_size()].copy_(flat(local.contiguous()))
        # Pieces of rows lie behind each other as they arrive.
        in_rows = cut in ([], [0])
        self._whole = None if in_rows else first.new_empty(shape, dtype=local.dtype)
        self._shape, self._dtype = shape, local.dtype
        self._nbytes = math.prod(shape) * local.element_size()

    def exchanged(self, groups: list[dist.ProcessGroup]) -> torch.Tensor:
        """The whole tensor. Collective over the groups, the last one first."""
        for mine, everybodys, group in zip(self._rooms, self._rooms[1:], reversed(groups), strict=False):
            dist.all_gather_into_tensor(everybodys, mine, group=group)
        arrived = self._rooms[-1]
        if self._whole is None:
            return arrived[: self._nbytes].view(self._dtype).view(self._shape)
        for at, box in enumerate(self._boxes):
            into = self._whole
            for dimension, (start, length) in enumerate(box):
                into = into.narrow(dimension, start, length)
            piece = arrived[at * self._piece :][: into.numel() * into.element_size()].view(self._dtype)
            into.copy_(piece.view(into.shape))
        return self._whole


def _device(groups: list[dist.ProcessGroup], device: torch.device) -> torch.device:
    """That of the shards, where the groups can exchange what lies there."""
    served = all(device.type in dist.get_backend_config(group) for group in groups)
    return device if served else group_device(groups[0])
