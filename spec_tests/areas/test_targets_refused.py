# SPDX-License-Identifier: Apache-2.0
"""TGT: what cannot be saved is refused, and named (spec/targets.md)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spec_tests.harness.export import refusal, save_metadata
from spec_tests.strategies.trees import Leaf, TreeSpec


def without_b(model):
    del model.get_submodule("layers.0.q").lora_B


def other_rank(model):
    model.get_submodule("layers.0.q").lora_B = nn.Linear(3, 16, bias=False)


def half_the_rank(model):
    model.get_submodule("layers.0.q").lora_B = nn.Linear(2, 16, bias=False)


def two_kinds_of_convolution(model):
    layer = model.get_submodule("layers.0.q")
    layer.lora_A, layer.lora_B = nn.Conv2d(8, 4, 3, bias=False), nn.Conv1d(4, 16, 1, bias=False)


def same_name(model):
    from spec_tests.builders.same_names import same_names_adapter

    model.state_dict_adapter = same_names_adapter()


def same_name_and_a_scale_on_one_alone(model):
    same_name(model)
    other = copy.deepcopy(model.get_submodule("layers.0.q"))
    del other.scale
    model.get_submodule("layers.1").q = other


def flattened(model):
    weight = model.get_submodule("layers.0.q").lora_A.weight
    weight.data = weight.data.flatten()


DAMAGES = (
    *(without_b, other_rank, half_the_rank, flattened, two_kinds_of_convolution),
    *(same_name, same_name_and_a_scale_on_one_alone),
)


@pytest.mark.clause("TGT-016")
@pytest.mark.parametrize("damage", DAMAGES)
def test_lora_without_a_loadable_form_is_refused(impl, fresh_dir, damage):
    directory = fresh_dir()
    model = TreeSpec((Leaf("layers.0.q"), Leaf("layers.1.q"))).build()
    damage(model)
    refusal(lambda: save_metadata(impl, model, directory), directory, naming="layers.0.q")


@pytest.mark.clause("TGT-016")
def test_lora_on_the_root_is_refused(impl, fresh_dir):
    directory = fresh_dir()
    model = TreeSpec((Leaf("q"),)).build().q
    # Beside it, LoRA that could be saved: the refusal is not that of a model without any.
    model.add_module("inner", TreeSpec((Leaf("k"),)).build().k)
    refusal(lambda: save_metadata(impl, model, directory), directory, kinds=Exception)


def trained_head(model):
    model.head = nn.Linear(4, 4)


def trained_lookalike(model):
    """Its name contains what the names of LoRA begin with."""
    model.get_submodule("layers.0").explora_gate = nn.Linear(4, 4)


def trained_norm(model):
    model.get_submodule("layers.0").norm = nn.LayerNorm(4)


def lora_bias(model):
    model.get_submodule("layers.0.q").lora_B.bias = nn.Parameter(torch.zeros(16))


def embedding_lora(model):
    model.embed = nn.Embedding(8, 4).requires_grad_(False)
    model.embed.lora_embedding_A = nn.Parameter(torch.zeros(2, 8))
    model.embed.lora_embedding_B = nn.Parameter(torch.zeros(4, 2))


def two_adapters(model):
    import peft

    layer = model.get_submodule("layers.1.q")
    layer.plain = nn.Linear(4, 4)
    for name in ("default", "other"):
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["plain"]), layer, adapter_name=name)


def parameter_lora(model):
    import peft

    layer = model.get_submodule("layers.1.q")
    layer.plain = nn.Linear(4, 4)
    peft.inject_adapter_in_model(peft.LoraConfig(target_parameters=["plain.weight"], target_modules=[]), layer)


@pytest.mark.clause("TGT-018")
@pytest.mark.parametrize(
    ("train", "named"),
    [
        (trained_head, "head"),
        (trained_norm, "layers.0.norm"),
        (trained_lookalike, "layers.0.explora_gate"),
        (lora_bias, "layers.0.q"),
        (embedding_lora, "embed"),
        (two_adapters, "layers.1.q.plain"),
        (parameter_lora, "layers.1.q.plain"),
    ],
)
def test_trained_parameters_that_would_be_lost_are_refused(impl, fresh_dir, train, named):
    directory = fresh_dir()
    model = TreeSpec((Leaf("layers.0.q"), Leaf("layers.1.q"))).build()
    train(model)
    refusal(lambda: save_metadata(impl, model, directory), directory, naming=named)
