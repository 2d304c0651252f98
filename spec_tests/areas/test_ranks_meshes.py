# SPDX-License-Identifier: Apache-2.0
"""RANK: whatever lays a model over ranks, its files are those of one process (spec/ranks.md)."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.experts import to_native_moe
from spec_tests.builders.meshes import DENSE, EXPERTS
from spec_tests.builders.randomness import draw_normal, generator
from spec_tests.builders.stages import stages
from spec_tests.builders.training import shard, shard_whole
from spec_tests.harness.export import snapshot
from spec_tests.harness.ranks import SOON, run_ranks, values

SMALL_FILES = 20_000
LAID = {**DENSE, **EXPERTS}


def adapter(impl, kind, directory, lay=lambda model: model, **more):
    spec = TRAINED[kind]
    model, config = lay(spec.trained(impl.adapters)), spec.peft_config(impl.peft_config)
    impl.save_adapter(model, directory, config, **spec.save, **more)
    return shards(model)


def shards(model):
    return sum(hasattr(tensor, "device_mesh") for tensor in model.parameters())


def whole(impl, kind, directory, lay=lambda model: model, **more):
    model = hf.llama()
    if kind != "llama":
        model = hf.qwen3_moe()
        to_native_moe(model)
        model.state_dict_adapter = impl.adapters["qwen3_moe"](model.config)
    model = lay(model)
    impl.save_consolidated(model, directory, max_shard_bytes=SMALL_FILES, **more)
    return shards(model)


def merged(impl, kind, directory, lay=lambda model: model, **more):
    model = lay(TRAINED[kind].trained(impl.adapters))
    impl.save_consolidated(model, directory, max_shard_bytes=SMALL_FILES, merge_lora=True, **more)
    return shards(model)


def in_the_background(impl, kind, directory, lay=lambda model: model, **more):
    model = lay(hf.llama())
    impl.save_consolidated(model, directory, max_shard_bytes=SMALL_FILES, asynchronous=True, **more).result()
    return shards(model)


def in_stages(impl, _kind, directory, _lay=None, **more):
    model = hf.llama()
    if more:
        model = stages(model)[dist.get_rank(more["process_group"])]
    impl.save_consolidated(model, directory, max_shard_bytes=SMALL_FILES, **more)


SAVES = {
    "adapter": adapter,
    "model": whole,
    "merged": merged,
    "model in the background": in_the_background,
    "model in stages": in_stages,
}


def save_laid(rank, world, impl, what, kind, name, directory):
    return SAVES[what](impl, kind, directory, LAID[name].lay)


def cases():
    adapter_alone, model_alone = pytest.mark.needs("save_adapter"), pytest.mark.needs("save_consolidated")
    experts = pytest.mark.needs("qwen3_moe_adapter")
    for name in DENSE:
        yield pytest.param("model", "llama", name, marks=model_alone)
        if name != "HSDP of eight":
            yield pytest.param("adapter", "llama", name, marks=adapter_alone)
    for at, name in enumerate(EXPERTS):
        yield pytest.param("model", "qwen3_moe", name, marks=[model_alone, experts])
        kind = ("qwen3_moe_fused", "qwen3_moe_v4")[at % 2]  # each with some of the meshes
        yield pytest.param("adapter", kind, name, marks=[adapter_alone, experts])


@pytest.mark.clause("RANK-015")
@pytest.mark.parametrize(("what", "kind", "name"), list(cases()))
def test_files_of_any_mesh_are_those_of_one_process(impl, fresh_dir, what, kind, name):
    alone, laid = fresh_dir() / "out", fresh_dir() / "out"
    SAVES[what](impl, kind, alone)
    sharded = values(run_ranks(LAID[name].world, save_laid, impl, what, kind, name, laid, timeout=2 * SOON))
    assert min(sharded) > 0 or name == "copies"
    assert snapshot(laid) == snapshot(alone)
    assert [path.name for path in laid.parent.iterdir()] == ["out"]


def save_at_once(rank, world, impl, what, parent):
    groups = [dist.new_group([1, 2]), dist.new_group([3, 4])]
    if rank == 0:  # it is in neither
        return
    number = (rank - 1) // 2
    group, mesh = groups[number], DeviceMesh.from_group(groups[number], "cpu")
    SAVES[what](impl, "llama", parent / str(number), lambda model: shard(model, mesh), process_group=group)


@pytest.mark.clause("RANK-015", "RANK-006")
@pytest.mark.needs("process_group")
@pytest.mark.parametrize(
    "what",
    [
        pytest.param("adapter", marks=pytest.mark.needs("save_adapter")),
        pytest.param("model", marks=pytest.mark.needs("save_consolidated")),
        pytest.param("merged", marks=pytest.mark.needs("save_consolidated", "merge_lora")),
        pytest.param("model in the background", marks=pytest.mark.needs("save_consolidated", "asynchronous")),
        pytest.param("model in stages", marks=pytest.mark.needs("save_consolidated")),
    ],
)
def test_two_groups_save_at_once(impl, fresh_dir, what):
    alone, parent = fresh_dir() / "out", fresh_dir()
    SAVES[what](impl, "llama", alone)
    values(run_ranks(5, save_at_once, impl, what, parent, timeout=2 * SOON))
    assert [snapshot(parent / name) for name in ("0", "1")] == [snapshot(alone)] * 2


def short(lay=lambda model: model):
    """Layers of one row or column and more, of which some ranks of four hold nothing."""
    layers = [nn.Linear(4, rows, bias=rows % 2 == 1) for rows in (1, 2, 3, 5)]
    layers += [nn.Linear(columns, 3, bias=False) for columns in (1, 2, 3, 5)]
    for at, parameter in enumerate(nn.Sequential(*layers).parameters()):
        draw_normal(parameter, generator(at), std=0.5)
    return lay(nn.Sequential(*layers))


def columns_cut_twice(model):
    """Each half of the last dimension is cut again: of two columns the second and the fourth rank hold nothing."""
    mesh = init_device_mesh("cpu", (2, 2))
    for name, parameter in list(model.named_parameters()):
        module, _, own = name.rpartition(".")
        placed = nn.Parameter(distribute_tensor(parameter.data, mesh, [Shard(parameter.ndim - 1)] * 2))
        setattr(model.get_submodule(module), own, placed)
    return model


def save_short(rank, world, impl, directory, lay):
    impl.save_consolidated(short(lay), directory)


@pytest.mark.clause("RANK-015")
@pytest.mark.needs("save_consolidated")
@pytest.mark.parametrize(
    ("world", "lay"), [(2, shard_whole), (3, shard_whole), (4, shard_whole), (4, columns_cut_twice)]
)
def test_tensors_smaller_than_the_mesh_are_whole(impl, fresh_dir, world, lay):
    alone, laid = fresh_dir() / "out", fresh_dir() / "out"
    impl.save_consolidated(short(), alone)
    values(run_ranks(world, save_short, impl, laid, lay, timeout=2 * SOON))
    assert snapshot(laid) == snapshot(alone)
