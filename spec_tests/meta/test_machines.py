# SPDX-License-Identifier: Apache-2.0
"""The reference's two ways to write weights: ranks of one machine, and ranks that are taken for several machines'.

All ranks of a test run on one machine, so that the suite sees one way only. Whatever the way and the sharding, the
files are, byte for byte, those of one process. On one machine shards that are bytes in a row do not travel.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import addons
from spec_tests.harness.export import snapshot
from spec_tests.harness.ranks import run_ranks, values

SMALL_FILES = 250


class Layers(nn.Module):
    """Linears of sizes that no number of ranks divides, a vector, a scalar and a counter."""

    def __init__(self):
        super().__init__()
        source = torch.Generator().manual_seed(3)
        self.up = nn.Linear(6, 10, bias=False)
        self.down = nn.Linear(10, 7, bias=False)
        self.norm = nn.Parameter(torch.empty(5))
        self.scale = nn.Parameter(torch.tensor(0.25))
        self.register_buffer("steps", torch.tensor(12))
        for parameter in (self.up.weight, self.down.weight, self.norm):
            parameter.data.copy_(torch.randn(parameter.shape, generator=source))


def placed(model, mesh, placements):
    for name, parameter in list(model.named_parameters()):
        module, _, own = name.rpartition(".")
        if parameter.ndim == 2:
            shard = nn.Parameter(distribute_tensor(parameter.data, mesh, placements))
            setattr(model.get_submodule(module), own, shard)
    return model


def columns(model):
    """FSDP2 over tensor parallel: the shards of FSDP are strided."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("fsdp", "tensor"))
    parallelize_module(model, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh["fsdp"])
    return model


def mesh_of(*shape):
    return init_device_mesh("cpu", shape)


SHARDED = {
    "copies": (2, lambda model: model),
    "rows": (3, lambda model: placed(model, mesh_of(3), [Shard(0)])),
    "columns": (2, lambda model: placed(model, mesh_of(2), [Shard(1)])),
    "copies of rows": (4, lambda model: placed(model, mesh_of(2, 2), [Replicate(), Shard(0)])),
    "rows of rows and columns": (4, lambda model: placed(model, mesh_of(2, 2), [Shard(0), Shard(1)])),
    "rows of rows": (4, lambda model: placed(model, mesh_of(2, 2), [Shard(0), Shard(0)])),
    "strided": (4, columns),
}
IN_ROWS = {"rows", "copies of rows", "rows of rows"}
"""Where the shards of some tensor are bytes in a row."""


def save_both_ways(rank, _world, which, directory, options):
    """Save as ranks of one machine and as ranks of several: the bytes that this rank sent, each time."""
    send, machine, sent = addons.gathering.send, addons.weights._machine, []

    def counted(group, content, to):
        sent[-1] += content.numel()
        send(group, content, to)

    addons.gathering.send = counted
    for name, tell in (("one", machine), ("several", lambda: (None, f"machine {rank}"))):
        addons.weights._machine = tell
        sent.append(0)
        pending = addons.save_consolidated(SHARDED[which][1](Layers()), directory / name, **options)
        if pending is not None:
            pending.result()
    return sent


@pytest.mark.parametrize("which", SHARDED)
def test_files_are_those_of_one_process(tmp_path, which):
    options = {"max_shard_bytes": SMALL_FILES, "asynchronous": which in {"rows", "strided"}}
    sent = values(run_ranks(SHARDED[which][0], save_both_ways, which, tmp_path, options))
    addons.save_consolidated(Layers(), tmp_path / "alone", max_shard_bytes=SMALL_FILES)
    alone = snapshot(tmp_path / "alone")
    assert sum(name.endswith(".safetensors") for name in alone) > 2
    assert [snapshot(tmp_path / name) for name in ("one", "several")] == [alone] * 2
    one, several = map(sum, zip(*sent, strict=True))
    assert (one < several) is (which in IN_ROWS)
