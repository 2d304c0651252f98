# SPDX-License-Identifier: Apache-2.0
"""RANK for models that compute in another dtype than they train in (spec/ranks.md)."""

from __future__ import annotations

import signal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial

from spec_tests.builders import hf
from spec_tests.builders.lora import apply_dense_lora
from spec_tests.builders.randomness import generator
from spec_tests.builders.trained import ALPHA, RANK
from spec_tests.builders.training import all_ranks, logits, sample_input_ids, train_steps
from spec_tests.harness.export import WEIGHTS, error_of, indexed_weights, same_numbers, save_metadata, text_of
from spec_tests.harness.ranks import run_ranks, values


def sharded(adapter, again):
    model = hf.llama()
    if adapter:
        model.requires_grad_(False)
        apply_dense_lora(model, ["q_proj", "v_proj"], RANK, ALPHA)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=generator(0))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy, reshard_after_forward=again)
    return fully_shard(model, mp_policy=policy, reshard_after_forward=again)


def save(rank, world, impl, directory, adapter, again, compute):
    model = sharded(adapter, again)
    if compute:
        logits(model, sample_input_ids())
    if adapter:
        tensors = impl.adapter_tensors(impl.model_state(model))
        save_metadata(impl, model, directory, impl.peft_config(dim=RANK, alpha=ALPHA))
        if rank == 0:
            save_file(tensors, directory / WEIGHTS)
    else:
        impl.save_consolidated(model, directory / "whole")
    return train_steps(model, 2)


def save_summands(rank, world, impl, directory):
    """Each rank has a summand of one tensor, as tensor parallelism leaves a sum that nobody has made yet."""
    model = nn.Linear(4, 4)
    summand = torch.full((4, 4), float(rank + 1))
    model.weight = nn.Parameter(DTensor.from_local(summand, all_ranks(), [Partial()]))
    return text_of(error_of(lambda: impl.save_consolidated(model, directory)))


@pytest.mark.clause("RANK-015")
@pytest.mark.needs("save_consolidated")
def test_tensor_in_summands_is_their_sum_or_refused(impl, fresh_dir):
    directory = fresh_dir() / "model"
    heard = values(run_ranks(2, save_summands, impl, directory))
    if directory.exists():
        assert heard == ["", ""]
        assert indexed_weights(directory)["weight"].unique().tolist() == [3.0]
    else:
        assert all("weight" in said for said in heard), heard


def save_and_listen(rank, world, impl, directory):
    """The handler of Ctrl-C before and after a save."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    impl.save_consolidated(hf.llama(), directory)
    return before is signal.default_int_handler, signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.clause("RANK-017")
@pytest.mark.needs("save_consolidated")
@pytest.mark.parametrize("world", [1, 2])
def test_ctrl_c_after_a_save_is_what_it_was_before(impl, fresh_dir, world):
    assert values(run_ranks(world, save_and_listen, impl, fresh_dir() / "model")) == [(True, True)] * world


@pytest.mark.clause("RANK-013")
@pytest.mark.parametrize("adapter", [True, pytest.param(False, marks=pytest.mark.needs("save_consolidated"))])
def test_save_after_a_forward_has_the_trained_values(impl, fresh_dir, adapter):
    found, losses = [], []
    # Before any forward, and after one that puts the shards back, and one that does not.
    for again, compute in ((True, False), (True, True), (False, True)):
        directory = fresh_dir()
        losses.append(values(run_ranks(2, save, impl, directory, adapter, again, compute)))
        found.append(load_file(directory / WEIGHTS) if adapter else indexed_weights(directory / "whole"))
    for after, loss in zip(found[1:], losses[1:], strict=True):
        assert {tensor.dtype for tensor in after.values()} == {torch.float32}
        assert same_numbers(found[0], after)
        assert losses[0] == loss
