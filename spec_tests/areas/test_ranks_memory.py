# SPDX-License-Identifier: Apache-2.0
"""RANK: memory runs out on one rank, or Ctrl-C comes there, at the tensors that a save makes (spec/ranks.md)."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.experts import to_native_moe
from spec_tests.builders.meshes import sharded_tensor_parallel
from spec_tests.builders.training import all_ranks, shard, shard_whole
from spec_tests.harness.export import snapshot, text_of
from spec_tests.harness.memory import NO_MEMORY, Allocations
from spec_tests.harness.ranks import SOON, run_ranks, values

MOMENTS = 3  # spread over a save


def adapter(impl, directory, _original):
    spec = TRAINED["qwen3_moe_v4"]
    model = shard(spec.trained(impl.adapters))
    return lambda: impl.save_adapter(model, directory, spec.peft_config(impl.peft_config), **spec.save)


def with_strides(impl, directory, _original):
    """Shards whose numbers do not lie side by side: each is copied before it can be sent."""
    spec, mesh = TRAINED["llama"], all_ranks()
    model = spec.trained(impl.adapters)
    for name, parameter in list(model.named_parameters()):
        if "lora_" in name:
            module, _, own = name.rpartition(".")
            local = distribute_tensor(parameter.data, mesh, [Shard(0)]).to_local().t().contiguous().t()
            placed = nn.Parameter(DTensor.from_local(local, mesh, [Shard(0)]), parameter.requires_grad)
            setattr(model.get_submodule(module), own, placed)
    return lambda: impl.save_adapter(model, directory, spec.peft_config(impl.peft_config))


def whole(impl, directory, _original):
    model = shard_whole(hf.llama())
    return lambda: impl.save_consolidated(model, directory, max_shard_bytes=9000, dtype=torch.bfloat16)


def asynchronous(impl, directory, _original):
    model = shard_whole(hf.llama())
    return lambda: impl.save_consolidated(model, directory, max_shard_bytes=9000, asynchronous=True).result()


def cut_twice(impl, directory, _original):
    model = sharded_tensor_parallel(2, 2)(hf.llama())
    return lambda: impl.save_consolidated(model, directory)


def split_by_transformers(impl, directory, _original):
    model = shard(hf.qwen3_moe())
    return lambda: impl.save_consolidated(model, directory)


def split_by_the_trainer(impl, directory, original):
    model = hf.qwen3_moe()
    to_native_moe(model)
    model.state_dict_adapter = impl.adapters["qwen3_moe"](model.config)
    model = shard(model)
    return lambda: impl.save_consolidated(model, directory, v4_compatible=True, original_model_path=str(original))


def merged(impl, directory, _original):
    model = shard(TRAINED["llama_dora"].trained(impl.adapters))
    return lambda: impl.save_consolidated(model, directory, merge_lora=True)


def merged_cut_twice(impl, directory, _original):
    spec = replace(TRAINED["llama"], dense=("model.layers.0.self_attn.q_proj",))
    model = sharded_tensor_parallel(2, 2)(spec.trained(impl.adapters))
    return lambda: impl.save_consolidated(model, directory, merge_lora=True)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


FAULTS = {NO_MEMORY: {}, "KeyboardInterrupt": {"fail": interrupt}}


def raised_by(save):
    try:
        return "" if save() is None else "?"
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - every error is looked at
        return text_of(error) or type(error).__name__


def fail_everywhere(rank, world, impl, directory, original, begin, failing, text):
    save = begin(impl, directory, original)
    save()
    before, counted, faults = snapshot(directory), Allocations(), []
    with counted:
        save()
    made = torch.tensor(counted.made)
    dist.broadcast(made, failing)
    # Of a merge cut twice some moments are of one dimension's group alone, and some of both.
    step = max(1, int(made) // (2 * MOMENTS if begin is merged_cut_twice else MOMENTS))
    for moment in range(0, int(made), step):
        dist.barrier()
        started = time.monotonic()
        with Allocations(moment if rank == failing else None, **FAULTS[text]):
            error = raised_by(save)
        seconds = time.monotonic() - started
        said: list = [None] * world
        dist.all_gather_object(said, error)
        if not all(text in one and (at == failing or f"rank {failing}" in one) for at, one in enumerate(said)):
            faults.append((moment, said))
        if seconds > SOON:
            faults.append((moment, seconds))
        if snapshot(directory) != before:
            faults.append((moment, "the directory has changed"))
    dist.barrier()
    return int(made), faults, [path.name for path in directory.parent.iterdir()]


def cases():
    whole_model = [pytest.mark.needs("save_consolidated")]
    kinds = {
        adapter: [pytest.mark.needs("save_adapter", "qwen3_moe_adapter")],
        with_strides: [pytest.mark.needs("save_adapter")],
        whole: whole_model,
        asynchronous: whole_model,
        split_by_the_trainer: [*whole_model, pytest.mark.needs("qwen3_moe_adapter")],
        merged: [*whole_model, pytest.mark.needs("merge_lora")],
    }
    if not transformers.__version__.startswith("4."):  # which reverts nothing on saving
        kinds[split_by_transformers] = whole_model
    # Each kind fails on one of the ranks, each rank with some of the kinds; `faults` takes both.
    for at, (begin, marks) in enumerate(kinds.items()):
        yield pytest.param(begin, 2, at % 2, NO_MEMORY, marks=marks)
    for begin in (whole, merged):
        yield pytest.param(begin, 2, 1, "KeyboardInterrupt", marks=kinds[begin])
    yield pytest.param(cut_twice, 4, 3, NO_MEMORY, marks=whole_model)
    yield pytest.param(merged_cut_twice, 4, 3, NO_MEMORY, marks=kinds[merged])


@pytest.mark.clause("RANK-017")
@pytest.mark.parametrize(
    ("begin", "world", "failing", "text"), list(cases()), ids=lambda one: getattr(one, "__name__", one)
)
def test_what_stops_one_rank_at_a_tensor_is_an_error_on_all(impl, fresh_dir, begin, world, failing, text):
    parent, original = fresh_dir(), fresh_dir()
    hf.qwen3_moe().config.save_pretrained(original)
    arguments = (impl, parent / "out", original, begin, failing, text)
    results = values(run_ranks(world, fail_everywhere, *arguments, timeout=8 * SOON))
    for made, faults, left in results:
        assert faults == []
        assert left == ["out"]
        assert made > 0
