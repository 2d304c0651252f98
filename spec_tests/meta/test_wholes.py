# SPDX-License-Identifier: Apache-2.0
"""How the reference puts a sharded tensor together: where the room for it lies, and how much of it there is."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from addons import ranks, whole
from spec_tests.builders.training import all_ranks
from spec_tests.harness.memory import Allocations
from spec_tests.harness.ranks import run_ranks, values

CONTENT = torch.arange(15, dtype=torch.float64).view(5, 3)


def put_together(rank, world, dimension):
    sharded = distribute_tensor(CONTENT, all_ranks(), [Shard(dimension)])
    with Allocations() as counted:
        found = whole.wholes({"": sharded})[""]
    return found.tolist(), counted.made


# The rank's own piece and everybody's; columns have to be put where they belong.
@pytest.mark.parametrize(("dimension", "made"), [(0, 2), (1, 3)], ids=["rows", "columns"])
def test_rows_are_left_where_they_arrive(dimension, made):
    assert values(run_ranks(2, put_together, dimension)) == [(CONTENT.tolist(), made)] * 2


def put_together_on_meta(rank, world):
    copies = DTensor.from_local(CONTENT.to("meta"), all_ranks(), [Replicate()])
    return whole.wholes({"": copies})[""].device.type


def test_room_is_where_the_shards_are():
    assert values(run_ranks(1, put_together_on_meta)) == ["meta"]


NCCL, BOTH, GLOO = "cuda:nccl", "cpu:gloo,cuda:nccl", "cpu:gloo"
CPU, SHARDS, THIS = torch.device("cpu"), torch.device("cuda", 1), torch.device("cuda", 3)


@pytest.mark.parametrize(
    ("groups", "shards", "room"),
    [
        ([BOTH, NCCL], SHARDS, SHARDS),
        ([GLOO], SHARDS, CPU),
        ([BOTH, GLOO], SHARDS, CPU),
        ([BOTH, GLOO], CPU, CPU),
        ([NCCL], CPU, THIS),
    ],
)
def test_shards_are_exchanged_where_they_lie_if_all_groups_can(monkeypatch, groups, shards, room):
    monkeypatch.setattr(ranks.dist, "get_backend_config", lambda group: group)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert whole._device(groups, shards) == room
