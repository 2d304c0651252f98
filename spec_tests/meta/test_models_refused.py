# SPDX-License-Identifier: Apache-2.0
"""Models that the reference refuses by name, or just does not refuse, beyond what a clause asks for."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard

import addons
from addons import whole
from spec_tests.builders import hf
from spec_tests.builders.lora import LoRALinear
from spec_tests.harness.export import error_of
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.implementations.base import TrainerPeftConfig
from spec_tests.strategies.experts import MoESpec, without_lora
from spec_tests.strategies.trees import Leaf, TreeSpec

CONFIG = TrainerPeftConfig(dim=4, alpha=8)
MIXIN = addons.MoESplitExpertsStateDictMixin
FUSED = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def refused(model, directory, match, kind=ValueError, **save):
    with pytest.raises(kind, match=match):
        addons.save_adapter(model, directory / "out", CONFIG, **save)
    assert list(directory.iterdir()) == []


def experts(adapter, spec=None):
    model = (spec or MoESpec(rank=4)).build()
    model.state_dict_adapter = adapter()
    return model


def test_lora_of_one_module_in_two_parts(tmp_path):
    parts = [TreeSpec((Leaf("layers.0.q"),)).build() for _ in range(2)]
    refused(parts, tmp_path, r"'layers\.0\.q' in two")


def test_lora_of_experts_and_of_a_layer_on_one_module(tmp_path):
    model = experts(addons.Qwen3MoeStateDictAdapter)
    module = model.get_submodule("model.layers.0.mlp.experts")
    module.lora_A, module.lora_B = nn.Linear(16, 4, bias=False), nn.Linear(4, 16, bias=False)
    refused(model, tmp_path, "dense or of grouped experts, got both")


class WithoutB(MIXIN):
    def to_hf(self, state_dict, **_options):
        return {name: tensor for name, tensor in state_dict.items() if "lora_B" not in name}


class WithoutBInMemory(MIXIN):
    def to_hf(self, state_dict, **_options):
        return {name: tensor for name, tensor in state_dict.items() if tensor.is_meta or "lora_B" not in name}


@pytest.mark.parametrize(
    ("adapter", "kind", "match"),
    [
        (WithoutB, ValueError, "must keep all LoRA"),
        (WithoutBInMemory, RuntimeError, r"layers\.0\.q\.lora_B\.weight'.* real tensors otherwise"),
    ],
)
def test_adapter_that_drops_tensors(tmp_path, adapter, kind, match):
    model = TreeSpec((Leaf("layers.0.q"),)).build()
    model.state_dict_adapter = adapter()
    refused(model, tmp_path, match, kind)


class OneDeclared(MIXIN):
    _v5_peft_target_parameters = FUSED[1:]


class OneOwner(addons.Qwen3MoeStateDictAdapter):
    def to_hf(self, state_dict, **options):
        found = super().to_hf(state_dict, **options)
        return {name: tensor for name, tensor in found.items() if ".base_layer." not in name}


class SideBySide(addons.Qwen3MoeStateDictAdapter):
    def to_hf(self, state_dict, **options):
        found = super().to_hf(state_dict, **options)
        return {
            name.replace("experts.base_layer", "experts.up").replace("experts.lora", "experts.down.lora"): tensor
            for name, tensor in found.items()
        }


@pytest.mark.parametrize(
    ("adapter", "match"),
    [
        (OneDeclared, "declare every fused parameter"),
        (OneOwner, "one module for each"),
        (SideBySide, "one module for each"),
    ],
)
def test_adapter_that_says_too_little_of_its_experts(tmp_path, adapter, match):
    refused(experts(adapter), tmp_path, match)


def test_experts_with_a_gate_that_the_adapter_says_they_have_not(tmp_path):
    refused(experts(addons.Qwen3MoeStateDictAdapter, replace(MoESpec(rank=4), gated=False)), tmp_path, "with a gate")


def test_experts_one_by_one_of_which_one_projection_is_trained(tmp_path):
    model = experts(addons.Qwen3MoeStateDictAdapter)
    for path in MoESpec().paths():
        without_lora(model.get_submodule(path), "down")
    refused(model, tmp_path, "LoRA on all projections", v4_compatible=True)


def test_head_that_has_lora_itself(tmp_path):
    model = TreeSpec((Leaf("layers.0.q"), Leaf("score")), architecture="LlamaForSequenceClassification").build()
    model.score.weight.requires_grad_(True)
    refused(model, tmp_path, r"score\.lora_\w\.weight' twice")


def convolution(kind):
    layer = kind(4, 4, 3)
    layer.lora_A, layer.lora_B, layer.scale = kind(4, 2, 3, bias=False), kind(2, 4, 1, bias=False), 2.0
    return layer


def stacked_experts():
    """Experts whose weights have a dimension more than their LoRA, over which a sum would spread it."""
    layer = MoESpec(layers=(0,)).build().get_submodule("model.layers.0.mlp.experts")
    layer.down_projs = nn.Parameter(torch.zeros(2, *layer.down_projs.shape))
    return layer


def packed_in_bfloat16():
    # As bitsandbytes holds four bits a number for FSDP2 (bnb_4bit_quant_storage).
    layer = LoRALinear(nn.Linear(4, 4, dtype=torch.bfloat16), 2, 4)
    layer.weight.quant_state = object()
    return layer


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: convolution(nn.Conv1d), "matrix of a linear layer to be merged, got it on 'layer'"),
        (lambda: convolution(nn.Conv2d), "matrix of a linear layer to be merged, got it on 'layer'"),
        (stacked_experts, "matrix of a linear layer to be merged, got it on 'layer'"),
        (packed_in_bfloat16, r"in floating point to merge LoRA into it, got 'layer\.weight'"),
    ],
    ids=["Conv1d", "Conv2d", "stacked experts", "four bits"],
)
def test_weight_that_is_no_plain_matrix_is_not_merged(tmp_path, make, match):
    model = nn.Module()
    model.layer = make()
    with pytest.raises(ValueError, match=match):
        addons.save_consolidated(model, tmp_path / "out", merge_lora=True)
    assert list(tmp_path.iterdir()) == []


class Shorter(transformers.LlamaForCausalLM):
    """A family that has one layer less than its config counts."""

    def __init__(self, config):
        super().__init__(config)
        del self.model.layers[-1]


def test_layers_are_counted_as_the_models_class_makes_them(tmp_path):
    addons.save_consolidated(Shorter(hf.llama().config), tmp_path / "out")
    module = nn.Module()
    module.model, module.config = Shorter(hf.llama().config).model, hf.llama().config
    with pytest.raises(ValueError, match="num_hidden_layers"):
        addons.save_consolidated(module, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def save_a_shard_of_the_wrong_shape(rank, world, directory):
    mesh = init_device_mesh("cpu", (world,))
    model = nn.Linear(4, 4, bias=False)
    local = torch.ones(3, 4)
    wrong = DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=torch.Size((4, 4)), stride=(4, 1))
    model.weight = nn.Parameter(wrong)
    with pytest.raises(ValueError, match=r"must have the shape \[2, 4\] by its placement"):
        addons.save_consolidated(model, directory / "out")


def test_shard_of_another_shape_than_its_placement_says(tmp_path):
    values(run_ranks(2, save_a_shard_of_the_wrong_shape, tmp_path))
    assert list(tmp_path.iterdir()) == []


def save_beside_the_group(rank, world, directory):
    """Rank 1 is no member of the group that saves, and only rank 0's files come to be."""
    group, everyone = dist.new_group([0]), dist.new_group([0, 1])
    whole, adapter = addons.ModelState(hf.llama()), addons.ModelState(TreeSpec((Leaf("q"),)).build(), is_peft=True)
    place = directory / str(rank)
    place.mkdir()
    addons.ConsolidatedHFAddon().pre_save(hf_metadata_dir=str(place), model_state=whole, process_group=group)
    addons.ConsolidatedHFAddon().post_save(
        consolidated_path=str(place), hf_metadata_dir=str(place), process_group=group
    )
    addons.PeftAddon().pre_save(model_path=str(place), model_state=adapter, peft_config=CONFIG, process_group=group)
    addons.save_adapter(adapter.model, place / "adapter", CONFIG, process_group=group)
    assert addons.save_consolidated(whole.model, place / "model", process_group=group) is None
    if rank == 0:
        stage = addons.ModelState(adapter.model, is_peft=True, pp_group=everyone)
        for save in (
            lambda: addons.save_adapter(adapter.model, place / "other", CONFIG, process_group=group, pp_group=everyone),
            lambda: addons.PeftAddon().pre_save(
                model_path=str(place / "other"), model_state=stage, peft_config=CONFIG, process_group=group
            ),
        ):
            with pytest.raises(ValueError, match="without rank 1 of pp_group"):
                save()
    return sorted(path.name for path in place.iterdir())


def test_rank_outside_the_group_takes_no_part(tmp_path):
    written, nothing = values(run_ranks(2, save_beside_the_group, tmp_path))
    assert {"adapter", "adapter_config.json", "config.json", "model"} <= set(written)
    assert nothing == []


def save_stage_without_its_pipeline(rank, world, directory, aware):
    """Of two stages the ranks in ``aware`` say that there is another; returns the error."""
    group = dist.new_group([0, 1])
    stage, pp_group = TreeSpec((Leaf(f"layers.{rank}.q"),)).build(), group if rank in aware else None
    return str(error_of(lambda: addons.save_adapter(stage, directory / "out", CONFIG, pp_group=pp_group)))


@pytest.mark.parametrize(
    ("aware", "said"),
    [
        ((), r"on rank 1 than on rank 0 .*'base_model\.model\.layers\.0\.q\.lora_A\.weight'"),
        ((0,), "pp_group must be the same on all ranks, got True on rank 0 and False on rank 1"),
    ],
)
def test_stages_that_forget_their_pipeline_hear_what_differs(tmp_path, aware, said):
    heard = values(run_ranks(2, save_stage_without_its_pipeline, tmp_path, aware))
    assert all(re.search(said, error) for error in heard), heard
    assert list(tmp_path.iterdir()) == []


def save_with_a_scale_of_its_own(rank, world, directory):
    model = TreeSpec((Leaf("layers.0.k"), Leaf("layers.0.q"))).build()
    model.get_submodule("layers.0.q").scale = rank + 1.0
    return str(error_of(lambda: addons.save_adapter(model, directory / "out", CONFIG)))


def test_ranks_whose_scales_alone_differ_hear_of_which_module(tmp_path):
    heard = values(run_ranks(2, save_with_a_scale_of_its_own, tmp_path))
    assert all("on rank 1 than on rank 0 (['layers.0.q']...)" in error for error in heard), heard


def save_after_the_end_of_the_group(rank, world, directory):
    """A shard that is the whole needs nobody: neither its values nor its metadata."""
    model = fully_shard(TreeSpec((Leaf("q"),)).build(), mesh=init_device_mesh("cpu", (1,)))
    dist.destroy_process_group()
    addons.PeftAddon().pre_save(model_path=directory, model_state=addons.ModelState(model), peft_config=CONFIG)


def test_metadata_of_a_shard_whose_group_has_ended_is_saved(tmp_path):
    values(run_ranks(1, save_after_the_end_of_the_group, tmp_path / "out"))
    assert (tmp_path / "out" / "adapter_config.json").exists()


def save_beside_an_expert_of_its_own(rank, world, directory):
    leaves = (Leaf("layers.0.q"), Leaf(f"experts.{rank}.layers.0.q", "none"))
    addons.save_adapter(TreeSpec(leaves).build(), directory, CONFIG)


def test_ranks_that_differ_in_modules_without_lora_are_not_refused(tmp_path):
    values(run_ranks(2, save_beside_an_expert_of_its_own, tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["exclude_modules"] == ["experts.0.layers.0.q", "experts.1.layers.0.q"]


def gather_what_only_torch_can(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    partial = DTensor.from_local(torch.full((2, 4), float(rank)), mesh, [Partial()])
    shard = DTensor.from_local(torch.full((1, 4, 2), float(rank)), mesh, [Shard(0)])
    converted = MIXIN().to_hf({"mlp.experts.down_projs": shard})
    return whole._whole(partial), {name: tensor.unique().item() for name, tensor in converted.items()}


def test_sums_over_ranks_and_shards_of_experts_are_gathered():
    for total, experts in values(run_ranks(2, gather_what_only_torch_can)):
        assert total.equal(torch.ones(2, 4))
        assert experts == {f"mlp.experts.{number}.down_proj.weight": float(number) for number in range(2)}
