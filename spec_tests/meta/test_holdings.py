# SPDX-License-Identifier: Apache-2.0
"""How the reference reads off a sharded tensor which rank has which piece of it, and where it leaves that to torch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from addons.holdings import check_readable, cuts


def strided(dimension, split_factor):
    return _StridedShard(dimension, split_factor=split_factor)


# Every mesh here has a dimension of 3 where sizes are to be told from each other.
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
