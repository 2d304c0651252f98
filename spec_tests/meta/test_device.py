# SPDX-License-Identifier: Apache-2.0
"""What a save does to the device of the model: ``python -m pytest spec_tests -m nccl`` runs them, on one GPU."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import addons
from spec_tests.areas.test_ranks_nccl import NCCL
from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.training import device_kind, shard
from spec_tests.harness.export import WEIGHTS, same_numbers
from spec_tests.harness.ranks import SOON, run_ranks, values

ONE = {"timeout": 6 * SOON, "backend": NCCL}
LARGE = {"hidden_size": 512, "intermediate_size": 2048, "head_dim": 64, "vocab_size": 8192}


def memory_of_saves(rank, world, directory):
    """A kind of save: bytes of the device at the most and after it, over those before; and of the largest tensor."""
    model = shard(hf.llama(**LARGE).to(device_kind()))
    largest = max(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    found = {}
    for name, more in {"as it is": {}, "cast": {"dtype": torch.bfloat16}, "later": {"asynchronous": True}}.items():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        pending = addons.save_consolidated(model, directory / name, **more)
        if pending is not None:
            pending.result()
        most, left = torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
        found[name] = most, left, largest
    return found


@pytest.mark.nccl(1)
def test_save_takes_no_more_of_the_device_than_its_largest_tensor(tmp_path):
    (found,) = values(run_ranks(1, memory_of_saves, tmp_path, **ONE))
    for name, (most, left, largest) in found.items():
        assert most <= 1.1 * largest, name
        assert left == 0, name


def save_injected(rank, world, directory):
    spec = TRAINED["llama_injected_patterns"]
    model = spec.trained({}).to(device_kind())
    model.save_pretrained(directory / "peft")
    addons.save_adapter(model, directory / "ours", model.peft_config["default"])


@pytest.mark.nccl(1)
def test_adapter_that_peft_injected_is_the_one_that_peft_saves(tmp_path):
    values(run_ranks(1, save_injected, tmp_path, **ONE))
    assert same_numbers(load_file(tmp_path / "ours" / WEIGHTS), load_file(tmp_path / "peft" / WEIGHTS))
