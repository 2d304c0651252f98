# SPDX-License-Identifier: Apache-2.0
"""RANK: pipeline stages, of which each has a part of the model (spec/ranks.md)."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.injected import config_for
from spec_tests.builders.mergeable import injected
from spec_tests.harness.export import OPTIONAL, WEIGHTS, Adapter, error_of, run_hook, save_adapter, snapshot, text_of
from spec_tests.harness.ranks import SOON, run_ranks, values
from spec_tests.strategies.experts import MoESpec, moe_model, without_lora
from spec_tests.strategies.trees import Leaf, TreeSpec


def save_stage(rank, world, impl, directory, stages, wrapped=False):
    tree = TreeSpec(stages[rank], ((f"model.layers.{rank}", "checkpoint"),) if wrapped else ())
    group = dist.new_group(list(range(world)))
    state = impl.model_state(tree.build(), is_peft=True, pp_group=group)
    tensors = impl.adapter_tensors(state)
    config = impl.peft_config(dim=4, alpha=8)
    run_hook(impl, "pre_save", **OPTIONAL, model_path=str(directory), model_state=state, peft_config=config)
    if rank == 0:
        save_file(tensors, directory / WEIGHTS)
    return sorted(tensors), impl.helpers["_get_hf_peft_config"](config, state)


@pytest.mark.clause("RANK-004", "ADP-010")
@pytest.mark.needs("_get_hf_peft_config")
@pytest.mark.parametrize("empty", [None, 0, 1])
def test_pipeline_stages_are_united_on_every_rank(impl, fresh_dir, empty):
    stages = [(Leaf("model.layers.0.q_proj"),), (Leaf("model.layers.1.q_proj"), Leaf("model.layers.1.v_proj"))]
    if empty is not None:
        stages[empty] = tuple(Leaf(leaf.path, "none") for leaf in stages[empty])
    directory = fresh_dir()
    results = values(run_ranks(2, save_stage, impl, directory, stages))
    expected = TreeSpec(stages[0] + stages[1]).expected_targets()
    written = load_file(directory / WEIGHTS)
    on_disk = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    for keys, config in results:
        assert config["target_modules"] == expected == on_disk["target_modules"]
        assert keys == sorted(written)
        assert config == results[0][1]
    assert {key.split(".lora_")[0].removeprefix("base_model.model.") for key in written} == set(expected)


OF_ANOTHER_STAGE = {
    "a module that ends like a target": (Leaf("layers.0.q_proj"), Leaf("tower.layers.0.q_proj", "none")),
    "experts": (Leaf("layers.0.mlp.gate_proj"), Leaf("layers.1.mlp.experts.0.up_proj", "none")),
}


@pytest.mark.clause("RANK-004", "LOAD-009", "TGT-019")
@pytest.mark.needs("_get_hf_peft_config")
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("whole", OF_ANOTHER_STAGE.values(), ids=OF_ANOTHER_STAGE)
def test_what_another_stage_holds_counts_as_in_one_process(impl, fresh_dir, whole, order):
    config = save_adapter(impl, TreeSpec(whole).build(), fresh_dir()).config
    directory = fresh_dir()
    values(run_ranks(2, save_stage, impl, directory, [(leaf,) for leaf in whole[::order]]))
    assert json.loads((directory / "adapter_config.json").read_text(encoding="utf-8")) == config


def save_stage_of_its_own_numbers(rank, world, impl, directory):
    """Both stages have one module, as a block that they share, and each has trained it by itself."""
    group, model = dist.new_group(list(range(world))), TreeSpec((Leaf("shared.q_proj"),)).build()
    with torch.no_grad():
        model.get_submodule("shared.q_proj").lora_B.weight.add_(rank)
    state = impl.model_state(model, is_peft=True, pp_group=group)
    return text_of(error_of(lambda: impl.adapter_tensors(state)))


@pytest.mark.clause("RANK-004")
@pytest.mark.needs("save_adapter")
def test_stages_that_trained_one_module_differently_are_refused(impl, fresh_dir):
    heard = values(run_ranks(2, save_stage_of_its_own_numbers, impl, fresh_dir()))
    assert all("shared.q_proj" in said for said in heard), heard


@pytest.mark.clause("RANK-004", "TGT-004")
@pytest.mark.needs("_get_hf_peft_config")
def test_stages_under_activation_checkpointing_leave_no_trace(impl, fresh_dir):
    stages = [(Leaf("model.layers.0.q_proj"),), (Leaf("model.layers.1.q_proj"),)]
    wrapped, plain = fresh_dir(), fresh_dir()
    found = values(run_ranks(2, save_stage, impl, wrapped, stages, True))
    assert found == values(run_ranks(2, save_stage, impl, plain, stages))
    assert snapshot(wrapped) == snapshot(plain)


def experts_of(impl, layers):
    """These layers of a mixture of experts with layers 0 to 2, of which layer 0's experts carry no LoRA."""
    model = moe_model(impl, MoESpec(layers=(0, 1, 2), rank=4))
    without_lora(model.get_submodule("model.layers.0.mlp.experts"))
    for layer in set("012") - set(layers):
        del model.model.layers[layer]
    return model


def save_stage_of_experts(rank, world, impl, directory, stages):
    group = dist.new_group(list(range(world)))
    mine = directory / str(rank)
    mine.mkdir()
    save_adapter(impl, experts_of(impl, stages[rank]), mine, pp_group=group)


@pytest.mark.clause("RANK-004", "TGT-020")
@pytest.mark.parametrize("stages", [("01", "2"), ("12", "0"), ("0", "12")])
def test_experts_on_several_stages_are_united(impl, fresh_dir, stages):
    directory = fresh_dir()
    values(run_ranks(2, save_stage_of_experts, impl, directory, stages))
    alone = save_adapter(impl, experts_of(impl, "012"), fresh_dir())
    assert snapshot(directory / "0") == snapshot(alone.directory)


def save_stage_of_shards(rank, world, impl, directory):
    """Two stages of a Llama, each sharded over two ranks: ranks 0, 1 hold layer 0 and ranks 2, 3 layer 1."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    spec = TRAINED["llama"]
    model = spec.trained(impl.adapters)
    keep = str(mesh["pp"].get_local_rank())
    for layer in ("0", "1"):
        if layer != keep:
            model.model.layers[int(layer)] = None
    for layer in model.model.layers.children():
        from torch.distributed.fsdp import fully_shard

        fully_shard(layer, mesh=mesh["dp"])
    state = impl.model_state(model, is_peft=True, pp_group=mesh["pp"].get_group())
    tensors = impl.adapter_tensors(state)
    config = spec.peft_config(impl.peft_config)
    run_hook(impl, "pre_save", **OPTIONAL, model_path=str(directory), model_state=state, peft_config=config)
    if rank == 0:
        save_file({key: tensors[key].contiguous() for key in sorted(tensors)}, directory / WEIGHTS)


@pytest.mark.clause("RANK-004")
def test_sharded_pipeline_stages_give_the_whole_adapter(impl, fresh_dir):
    spec, directory = TRAINED["llama"], fresh_dir()
    values(run_ranks(4, save_stage_of_shards, impl, directory))
    alone = save_adapter(impl, spec.trained(impl.adapters), fresh_dir(), spec.peft_config(impl.peft_config))
    assert snapshot(directory) == snapshot(alone.directory)


def save_stages_of_a_group(rank, world, impl, directory, same):
    group = dist.new_group([2, 3])
    if rank < 2:
        return None
    model = TreeSpec((Leaf(f"model.layers.{rank}.q_proj"), Leaf("model.shared.k_proj"))).build()
    with torch.no_grad():
        model.model.shared.k_proj.lora_B.weight.fill_(1.0 if same else rank)
    groups = {"pp_group": group, "process_group": group}
    error = error_of(lambda: impl.save_adapter(model, directory, impl.peft_config(dim=4, alpha=8), **groups))
    state = impl.model_state(model, is_peft=True, pp_group=group)
    if error is None:
        assert impl.adapter_tensors(state).keys() == Adapter(directory).tensors.keys()
        return ""
    assert "shared.k_proj" in text_of(error_of(lambda: impl.adapter_tensors(state)))
    return text_of(error)


@pytest.mark.clause("RANK-004", "RANK-006")
@pytest.mark.needs("save_adapter", "process_group")
@pytest.mark.parametrize("same", [True, False], ids=["one value", "two values"])
def test_stages_of_a_group_that_begins_later_are_united(impl, fresh_dir, same):
    directory = fresh_dir() / "out"
    said = values(run_ranks(4, save_stages_of_a_group, impl, directory, same, timeout=2 * SOON))[2:]
    if same:
        assert said == ["", ""]
        assert Adapter(directory).modules == ["model.layers.2.q_proj", "model.layers.3.q_proj", "model.shared.k_proj"]
    else:
        assert all("shared.k_proj" in one for one in said), said
        assert not directory.exists()


def layers_of_two_kinds():
    torch.manual_seed(0)
    return nn.ModuleDict({"first": Conv1D(8, 8), "last": nn.Linear(8, 8)})


def save_injected_stage(rank, world, impl, directory):
    """PEFT injects each stage by itself, and notes in its config whether the layers there are turned."""
    name, whole = ["first", "last"][rank], layers_of_two_kinds()
    stage = injected(lambda: nn.ModuleDict({name: whole[name]}), ["first", "last"])
    config = config_for(impl, stage.peft_config["default"])
    impl.save_adapter(stage, directory, config, pp_group=dist.new_group(list(range(world))))
    return stage.base_model.model[name](torch.eye(8)).detach()


@pytest.mark.clause("RANK-004")
@pytest.mark.needs("save_adapter", "peft_injected")
def test_stages_whose_layers_hold_their_weights_otherwise_are_united(impl, fresh_dir):
    directory = fresh_dir() / "out"
    trained = values(run_ranks(2, save_injected_stage, impl, directory))
    again = peft.PeftModel.from_pretrained(layers_of_two_kinds(), str(directory)).eval()
    for name, expected in zip(("first", "last"), trained, strict=True):
        torch.testing.assert_close(again.base_model.model[name](torch.eye(8)), expected)
