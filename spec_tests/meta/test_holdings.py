# SPDX-License-Identifier: Apache-2.0
"""How the reference reads off a sharded tensor which rank has which piece of it, and where it leaves that to torch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from addons.holdings import Held, Source, check_readable, cuts, holdings
from spec_tests.harness.ranks import run_ranks, values


def strided(dimension, split_factor):
    return _StridedShard(dimension, split_factor=split_factor)


@pytest.mark.parametrize(
    ("shape", "mesh", "placements", "found"),
    [
        ((4, 4), (2, 3), [Replicate(), Shard(-1)], [(0, None), (1, 1)]),
        ((4, 4), (2, 3), [Shard(0), Shard(0)], [(0, 0), (1, 0)]),
        # A strided shard is cut last, out of the shards of the later dimensions of the mesh.
        ((12, 4), (2, 3), [strided(0, 3), Shard(0)], [(1, 0), (0, 0)]),
        ((12, 4), (2, 2, 3), [strided(0, 6), Shard(0), Shard(0)], [(1, 0), (2, 0), (0, 0)]),
        ((12, 4), (2, 2, 3), [Replicate(), strided(0, 3), Shard(0)], [(0, None), (2, 0), (1, 0)]),
        ((4, 4), (2, 3, 2), [strided(0, 2), Shard(1), Shard(0)], [(1, 1), (2, 0), (0, 0)]),
    ],
)
def test_order_in_which_a_mesh_cuts(shape, mesh, placements, found):
    assert cuts(laid(shape, mesh, placements)) == found


@pytest.mark.parametrize(
    ("shape", "mesh", "placements"),
    [
        pytest.param((4,), (2,), [Partial()], id="summands"),
        pytest.param((6,), (2, 2), [strided(0, 2), Shard(0)], id="uneven"),
        pytest.param((12,), (2, 2), [strided(0, 3), Shard(0)], id="cut by another mesh"),
        pytest.param((8,), (2, 2, 2), [strided(0, 4), strided(0, 2), Shard(0)], id="two strides"),
    ],
)
def test_torch_alone_knows_the_pieces(shape, mesh, placements):
    assert cuts(laid(shape, mesh, placements)) is None


def laid(shape, mesh, placements):
    """What is read of a DTensor, without the ranks that a real one takes."""
    return SimpleNamespace(
        ndim=len(shape), shape=shape, placements=placements, device_mesh=SimpleNamespace(mesh=torch.empty(mesh))
    )


@pytest.mark.parametrize("bad", [torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta")], ids=["sparse", "meta"])
def test_tensor_without_rows_of_values_is_named(bad):
    with pytest.raises(ValueError, match="'b' must hold its values in a dense tensor"):
        check_readable({"a": torch.ones(1), "b": bad})


def describe_in_a_group(rank, world):
    group, everyone = dist.new_group([1]), init_device_mesh("cpu", (world,))
    if rank == 0:
        return
    own, shared = (
        DTensor.from_local(torch.ones(2), mesh, [Shard(0)]) for mesh in (DeviceMesh.from_group(group, "cpu"), everyone)
    )
    found = (torch.float32, (2,))
    assert holdings({"own": own, "plain": torch.ones(2)}, group) == (
        ("own", Held(*found, Source((0,), (1,), (0,)))),
        ("plain", Held(*found, Source())),
    )
    with pytest.raises(ValueError, match="without rank 0, which has a part of 'shared'"):
        holdings({"own": own, "shared": shared}, group)


def test_ranks_of_a_mesh_are_counted_in_the_group():
    values(run_ranks(2, describe_in_a_group))
