# SPDX-License-Identifier: Apache-2.0
"""How the reference merges LoRA: where the sums are made, in which dtype, and what is left of them on a rank."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import addons
from addons.merging import merged_parts
from addons.modules import model_parts
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.lora import LoRALinear, randomise_lora
from spec_tests.builders.training import shard
from spec_tests.harness.ranks import run_ranks, values


def dora():
    """One layer of a trainer's with DoRA."""
    model = nn.Module()
    model.layer = LoRALinear(nn.Linear(16, 24), 4, 8, use_dora=True)
    randomise_lora(model)
    return model


def merged(model):
    (part,) = merged_parts(model_parts([model]))
    return part.parameters


def placements(tensors):
    return {name: getattr(tensor, "placements", None) for name, tensor in tensors}


def shardings(rank, world):
    model = shard(TRAINED["llama_dora"].trained({}))
    held, left = placements(model.named_parameters()), placements(merged(model).items())
    return {name: str(placement) for name, placement in left.items() if placement != held[name]}, len(left)


def test_merged_weights_are_sharded_as_they_were():
    # The files are the same without it, but every rank would hold the whole model.
    for changed, number in values(run_ranks(2, shardings)):
        assert changed == {}
        assert number > 0


def test_lora_beside_its_weight_is_merged_on_the_device_of_the_weight():
    model = dora()
    model.layer.weight = nn.Parameter(model.layer.weight.to("meta"))
    assert merged(model)["layer.weight"].device.type == "meta"


@pytest.mark.parametrize("named", ["lora_", "lora_magnitude"])
def test_lora_of_more_digits_is_merged_in_float32(named):
    model = dora()
    expected = merged(model)["layer.weight"]
    for name, parameter in model.named_parameters():
        if named in name:
            parameter.data = parameter.data.double()
    assert torch.equal(merged(model)["layer.weight"], expected)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 4), (8, 4), (16, 1), None])
def test_weight_of_another_shape_than_its_lora_says_is_not_merged(tmp_path, shape):
    """A sum would spread over a smaller one, and of the rest it would not name the layer."""
    model = nn.Module()
    model.layer = LoRALinear(nn.Linear(4, 4), 2, 4)
    model.layer.weight = None if shape is None else nn.Parameter(torch.ones(shape))
    with pytest.raises(ValueError, match="matrix of a linear layer to be merged, got it on 'layer'"):
        addons.save_consolidated(model, tmp_path / "out", merge_lora=True)
    assert list(tmp_path.iterdir()) == []
