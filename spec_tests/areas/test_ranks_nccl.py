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
from spec_tests.builders.meshes import DENSE, rows
from spec_tests.builders.training import device_kind, shard, train_steps
from spec_tests.harness.export import error_of, snapshot, text_of
from spec_tests.harness.kill import Steps
from spec_tests.harness.ranks import SOON, run_ranks, values
from spec_tests.loading import load

SMALL_FILES = 20_000
TEXT = "no space on this machine"
LAID = {"one rank": (1, rows), **{name: (laid.world, laid.lay) for name, laid in DENSE.items()}}


def adapter(impl, directory, lay, device):
    spec = TRAINED["llama"]
    model = lay(spec.trained(impl.adapters).to(device))
    impl.save_adapter(model, directory, spec.peft_config(impl.peft_config))


def whole(impl, directory, lay, device):
    impl.save_consolidated(lay(hf.llama().to(device)), directory, max_shard_bytes=SMALL_FILES)


SAVES = {"adapter": adapter, "model": whole}
kinds = pytest.mark.parametrize(
    "what",
    [
        pytest.param("adapter", marks=pytest.mark.needs("save_adapter")),
        pytest.param("model", marks=pytest.mark.needs("save_consolidated")),
    ],
)


def save_laid(rank, world, impl_name, what, name, directory):
    SAVES[what](load(impl_name), directory, LAID[name][1], device_kind())
    # What a save has started on the device has ended with it: the next step waits for nothing.
    return torch.cuda.current_stream().query() if device_kind() == "cuda" else True


@pytest.mark.clause("RANK-015")
@kinds
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nccl(world)) for name, (world, _) in LAID.items()]
)
def test_files_of_any_mesh_are_those_of_one_process(impl, impl_name, fresh_dir, what, name):
    alone, laid = fresh_dir() / "out", fresh_dir() / "out"
    SAVES[what](impl, alone, lambda model: model, "cpu")
    settings = {"timeout": 6 * SOON, "backend": "nccl"}
    assert all(values(run_ranks(LAID[name][0], save_laid, impl_name, what, name, laid, **settings)))
    assert snapshot(laid) == snapshot(alone)


def wide():
    """A model that takes longer to write than to change."""
    return hf.llama(hidden_size=256, intermediate_size=1024, head_dim=64)


def save_while_training(rank, world, impl_name, directory):
    impl, model = load(impl_name), shard(wide().to(device_kind()))
    pending = impl.save_consolidated(model, directory, asynchronous=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    losses = train_steps(model, 2)
    pending.result()
    return losses


@pytest.mark.clause("POST-011")
@pytest.mark.needs("save_consolidated")
@pytest.mark.parametrize("world", [pytest.param(world, marks=pytest.mark.nccl(world)) for world in (1, 2)])
def test_asynchronous_save_holds_what_was_there(impl, impl_name, fresh_dir, world):
    alone, laid = fresh_dir() / "out", fresh_dir() / "out"
    impl.save_consolidated(wide(), alone)
    values(run_ranks(world, save_while_training, impl_name, laid, timeout=6 * SOON, backend="nccl"))
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
    said = values(run_ranks(world, fail_on_one_rank, impl_name, directory, timeout=6 * SOON, backend="nccl"))
    assert all(TEXT in text for text in said), said
