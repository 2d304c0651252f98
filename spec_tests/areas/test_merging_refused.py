# SPDX-License-Identifier: Apache-2.0
"""MRG-004: what cannot be merged (spec/merging.md)."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.mergeable import BASES, injected
from spec_tests.builders.trained import ALPHA, RANK
from spec_tests.builders.training import shard
from spec_tests.harness.export import refusal
from spec_tests.harness.ranks import SOON, all_failed, run_ranks
from spec_tests.strategies.trees import Leaf, TreeSpec

pytestmark = pytest.mark.needs("save_consolidated")


def merge_unlike(rank, world, impl, directory, fault):
    model = shard(injected(*BASES["llama"]).base_model.model)
    if rank == 1 and fault == "a scale":
        for module in model.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling["default"] = None
    if rank == 1 and fault == "values":
        model.lm_head.weight = nn.Parameter(torch.empty(64, 32, device="meta"))
    if rank == 1 and fault == "a merged layer":
        model.model.layers[0].self_attn.q_proj.merged_adapters = ["default"]
    place = "" if rank == 1 and fault == "the directory" else directory
    impl.save_consolidated(model, place, merge_lora=fault != "the option" or rank == 0)


@pytest.mark.clause("MRG-004", "RANK-003")
@pytest.mark.needs("merge_lora")
@pytest.mark.parametrize("fault", ["a scale", "a merged layer", "values", "the directory", "the option"])
def test_refusal_on_one_rank_reaches_all_before_anything_is_gathered(impl, fresh_dir, fault):
    directory = fresh_dir() / "model"
    results = run_ranks(2, merge_unlike, impl, directory, fault, timeout=2 * SOON)
    assert all_failed(results), results
    assert max(result.seconds for result in results) < SOON
    assert not directory.exists()


def merged_already(model):
    model.merge_adapter()
    return model


def tied(_model):
    return injected(lambda: hf.llama(tied=True), ["q_proj", "lm_head"])


def quantised(model):
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    return model


def twins(model):
    """Two modules of one weight, each with LoRA of its own."""
    layers = model.base_model.model.model.layers
    layers[1].self_attn.q_proj.base_layer.weight = layers[0].self_attn.q_proj.base_layer.weight
    return model


def bare(_model):
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[], target_parameters=["mlp.experts.down_proj"])
    return peft.get_peft_model(hf.gpt_oss(), config)


@pytest.mark.clause("MRG-004")
@pytest.mark.needs("merge_lora")
@pytest.mark.parametrize(
    ("alter", "named"),
    [
        (merged_already, "layers.0"),
        (tied, "lm_head"),
        (twins, "q_proj"),
        (quantised, "q_proj"),
        (bare, "experts.down_proj"),
    ],
)
def test_what_cannot_be_merged_is_refused(impl, fresh_dir, alter, named):
    model, directory = alter(injected(*BASES["llama"])), fresh_dir() / "model"
    refusal(lambda: impl.save_consolidated(model, directory, merge_lora=True), directory, naming=named)


@pytest.mark.clause("MRG-004")
@pytest.mark.needs("merge_lora")
def test_lora_of_an_unknown_scale_is_not_merged(impl, fresh_dir):
    model, directory = TRAINED["llama"].trained(impl.adapters), fresh_dir() / "model"
    for module in model.modules():
        vars(module).pop("scale", None)
    refusal(lambda: impl.save_consolidated(model, directory, merge_lora=True), directory, naming="scale")


@pytest.mark.clause("MRG-004")
@pytest.mark.needs("merge_lora", "model_parts")
@pytest.mark.parametrize("unknown", [0, 1])
def test_lora_of_an_unknown_scale_is_refused_in_any_part(impl, fresh_dir, unknown):
    directory, parts = fresh_dir() / "model", []
    for number in range(2):
        parts.append(TreeSpec((Leaf(f"model.layers.{number}.q_proj"),)).build())
        parts[number].config = hf.llama().config
    for module in parts[unknown].modules():
        vars(module).pop("scale", None)
    refusal(lambda: impl.save_consolidated(parts, directory, merge_lora=True), directory, naming="scale")
