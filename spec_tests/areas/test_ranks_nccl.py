# SPDX-License-Identifier: Apache-2.0
"""RANK on CUDA devices over NCCL: ``python -m pytest spec_tests -m nccl`` (spec/ranks.md).

One rank a GPU; one GPU is a case of its own. Where there are too few, the run says how many tests it left out.
"""

from __future__ import annotations

import errno

import pytest
import torch
import torch.distributed as dist

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.experts import to_native_moe
from spec_tests.builders.meshes import DENSE, EXPERTS, Laid, computed, copies, expert_parallel, offloaded, rows
from spec_tests.builders.training import device_kind, shard, train_steps
from spec_tests.harness.export import error_of, snapshot, text_of
from spec_tests.harness.kill import Steps
from spec_tests.harness.ranks import SOON, run_ranks, values
from spec_tests.loading import load

SMALL_FILES = 20_000
TEXT = "no space on this machine"
NCCL, WITH_CPU = "nccl", "cpu:gloo,cuda:nccl"
"""What trainers make their groups of: NCCL alone, or gloo beside it for tensors on the CPU."""
LAID = {
    "one rank": Laid(1, rows),
    "one rank with all": Laid(1, copies),
    "one rank, after a forward in bf16": Laid(1, computed),
    "one rank, offloaded": Laid(1, offloaded),
    "FSDP2, after a forward in bf16": Laid(2, computed),
    "FSDP2, offloaded": Laid(2, offloaded),
    **DENSE,
}
LAID_EXPERTS = {"expert parallel of one rank": Laid(1, expert_parallel), **EXPERTS}


def adapter(impl, kind, directory, lay, device):
    spec = TRAINED[kind]
    model = lay(spec.trained(impl.adapters).to(device))
    impl.save_adapter(model, directory, spec.peft_config(impl.peft_config), **spec.save)


def whole(impl, kind, directory, lay, device):
    model = hf.llama()
    if kind != "llama":
        model = hf.qwen3_moe()
        to_native_moe(model)
        model.state_dict_adapter = impl.adapters["qwen3_moe"](model.config)
    impl.save_consolidated(lay(model.to(device)), directory, max_shard_bytes=SMALL_FILES)


SAVES = {"adapter": adapter, "model": whole}


def cases():
    adapter_alone, model_alone = pytest.mark.needs("save_adapter"), pytest.mark.needs("save_consolidated")
    experts = pytest.mark.needs("qwen3_moe_adapter")
    for backend in (NCCL, WITH_CPU):
        for name, laid in LAID.items():
            world = pytest.mark.nccl(laid.world)
            yield pytest.param("model", "llama", name, backend, marks=[world, model_alone])
            yield pytest.param("adapter", "llama", name, backend, marks=[world, adapter_alone])
        for name, laid in LAID_EXPERTS.items():
            marks = [pytest.mark.nccl(laid.world), experts]
            yield pytest.param("model", "qwen3_moe", name, backend, marks=[*marks, model_alone])
            for kind in ("qwen3_moe_fused", "qwen3_moe_v4"):
                yield pytest.param("adapter", kind, name, backend, marks=[*marks, adapter_alone])


def save_laid(rank, world, impl_name, what, kind, name, directory):
    SAVES[what](load(impl_name), kind, directory, {**LAID, **LAID_EXPERTS}[name].lay, device_kind())
    # What a save has started on the device has ended with it: the next step waits for nothing.
    return torch.cuda.current_stream().query() if device_kind() == "cuda" else True


@pytest.mark.clause("RANK-015")
@pytest.mark.parametrize(("what", "kind", "name", "backend"), list(cases()))
def test_files_of_any_mesh_are_those_of_one_process(impl, impl_name, fresh_dir, what, kind, name, backend):
    alone, laid = fresh_dir() / "out", fresh_dir() / "out"
    SAVES[what](impl, kind, alone, lambda model: model, "cpu")
    settings = {"timeout": 6 * SOON, "backend": backend}
    world = {**LAID, **LAID_EXPERTS}[name].world
    assert all(values(run_ranks(world, save_laid, impl_name, what, kind, name, laid, **settings)))
    assert snapshot(laid) == snapshot(alone)


def wide():
    """A model that takes longer to write than to change."""
    return hf.llama(hidden_size=256, intermediate_size=1024, head_dim=64)


def save_while_training(rank, world, impl_name, name, directory):
    impl, model = load(impl_name), LAID[name].lay(wide().to(device_kind()))
    pending = impl.save_consolidated(model, directory, asynchronous=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    losses = train_steps(model, 2)
    pending.result()
    return losses


@pytest.mark.clause("POST-011")
@pytest.mark.needs("save_consolidated")
@pytest.mark.parametrize("backend", [NCCL, WITH_CPU])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.nccl(LAID[name].world))
        for name in ("one rank", "one rank with all", "one rank, offloaded", "FSDP2", "FSDP2, offloaded")
    ],
)
def test_asynchronous_save_holds_what_was_there(impl, impl_name, fresh_dir, name, backend):
    alone, laid = fresh_dir() / "out", fresh_dir() / "out"
    impl.save_consolidated(wide(), alone)
    settings = {"timeout": 6 * SOON, "backend": backend}
    values(run_ranks(LAID[name].world, save_while_training, impl_name, name, laid, **settings))
    assert snapshot(laid) == snapshot(alone)


def fail_on_one_rank(rank, world, impl_name, directory):
    impl, model = load(impl_name), shard(hf.llama().to(device_kind()))
    steps = Steps()
    impl.save_consolidated(model, directory, max_shard_bytes=SMALL_FILES)
    dist.barrier()
    if rank == world - 1:
        steps.end_at(1, OSError(errno.ENOSPC, TEXT))
    return text_of(error_of(lambda: impl.save_consolidated(model, directory, max_shard_bytes=SMALL_FILES)))


@pytest.mark.clause("RANK-014")
@pytest.mark.needs("save_consolidated")
@pytest.mark.parametrize("world", [pytest.param(world, marks=pytest.mark.nccl(world)) for world in (2, 4)])
def test_error_of_one_rank_reaches_all(impl_name, fresh_dir, world):
    directory = fresh_dir() / "out"
    said = values(run_ranks(world, fail_on_one_rank, impl_name, directory, timeout=6 * SOON, backend=NCCL))
    assert all(TEXT in text for text in said), said
