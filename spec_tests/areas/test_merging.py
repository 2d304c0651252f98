# SPDX-License-Identifier: Apache-2.0
"""MRG: LoRA merged into a whole model (spec/merging.md)."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import peft
import pytest
import torch
import transformers
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.mergeable import BASES, injected
from spec_tests.builders.meshes import hybrid, sharded_tensor_parallel, tensor_parallel
from spec_tests.builders.randomness import draw_normal, generator
from spec_tests.builders.trained import ALPHA
from spec_tests.builders.training import shard, train_steps
from spec_tests.builders.wrappers import wrap
from spec_tests.harness.export import indexed_weights, refusal, same_numbers
from spec_tests.harness.ranks import SOON, run_ranks, values

pytestmark = pytest.mark.needs("save_consolidated")


KINDS = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.0.self_attn.q_proj": 2},
        "alpha_pattern": {"down_proj": 20, "layers.1.self_attn.q_proj": 0},
    },
    "with a head": {"modules_to_save": ["lm_head"]},
}


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.clause("MRG-002")
@pytest.mark.needs("merge_lora")
def test_layer_of_its_own_that_is_called_as_pefts_keeps_its_name(impl, fresh_dir):
    directory, model = fresh_dir() / "model", injected(hf.llama, ["q_proj"])
    model.base_model.model.adapter = nn.ModuleDict({"base_layer": nn.Linear(4, 4)})
    impl.save_consolidated(model, directory, merge_lora=True)
    assert {"adapter.base_layer.weight", "adapter.base_layer.bias"} <= indexed_weights(directory).keys()


@pytest.mark.clause("MRG-001")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe_fused", "llama_injected"])
def test_model_with_lora_is_refused_unless_merged(impl, fresh_dir, kind):
    model, directory = TRAINED[kind].trained(impl.adapters), fresh_dir() / "model"
    refusal(lambda: impl.save_consolidated(model, directory), directory, naming="layers.0")


@pytest.mark.clause("MRG-002", "MRG-003")
@pytest.mark.needs("merge_lora")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", BASES)
def test_merged_weights_are_those_of_peft_rounded_once(impl, fresh_dir, base, kind, dtype):
    model, directory = injected(*BASES[base], dtype, **KINDS[kind]), fresh_dir() / "model"
    before = state(model)
    impl.save_consolidated(model, directory, merge_lora=True)
    assert same_numbers(state(model), before)
    peers = copy.deepcopy(model).float().merge_and_unload().state_dict()
    merged = indexed_weights(directory)
    assert {tensor.dtype for tensor in merged.values()} == {dtype}
    for name, tensor in merged.items():
        # Another order of the same sums may fall on the other side of a half.
        torch.testing.assert_close(
            tensor, peers[name].to(dtype), rtol=2e-5 if dtype == torch.float32 else 0.008, atol=1e-7
        )
        assert (tensor != peers[name].to(dtype)).float().mean() < (1 if dtype == torch.float32 else 0.01)


@pytest.mark.clause("MRG-002")
@pytest.mark.needs("merge_lora", "qwen3_moe_adapter")
@pytest.mark.parametrize("kind", ["qwen3_moe_fused", "llama", "llama_split"])
def test_merged_model_of_a_trainer_answers_as_the_live_one(impl, fresh_dir, kind):
    spec = TRAINED[kind]
    model, directory, given = spec.trained(impl.adapters).eval(), fresh_dir() / "model", torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        live = model(given).logits
    by_expert = transformers.__version__.startswith("4.")  # as version 4 reads experts
    impl.save_consolidated(model, directory, merge_lora=True, v4_compatible=by_expert)
    kind_of = transformers.Qwen3MoeForCausalLM if "moe" in kind else transformers.LlamaForCausalLM
    read, info = kind_of.from_pretrained(directory, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        torch.testing.assert_close(read.eval()(given).logits, live, atol=1e-4, rtol=1e-4)


def merge_on_ranks(rank, world, impl, directory, use_dora):
    model = injected(*BASES["llama"], use_dora=use_dora)
    sharded = shard(model.base_model.model) if world > 1 else model.base_model.model
    before = {name: t.detach().clone() for name, t in sharded.named_parameters()}
    impl.save_consolidated(sharded, directory, merge_lora=True)
    return all(torch.equal(_local(t), _local(before[name])) for name, t in sharded.named_parameters())


def _local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@pytest.mark.clause("MRG-002", "MRG-003")
@pytest.mark.needs("merge_lora")
@pytest.mark.parametrize("use_dora", [False, True], ids=["plain", "dora"])
def test_sharded_model_is_merged_as_a_whole_one(impl, fresh_dir, use_dora):
    one, two = fresh_dir() / "one", fresh_dir() / "two"
    assert values(run_ranks(1, merge_on_ranks, impl, one, use_dora)) == [True]
    assert values(run_ranks(2, merge_on_ranks, impl, two, use_dora)) == [True, True]
    first, second = indexed_weights(one), indexed_weights(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def train(rank, world, impl, directory):
    model = injected(*BASES["llama"])
    if directory is not None:
        impl.save_consolidated(model, directory, merge_lora=True)
    return train_steps(model, 2)


@pytest.mark.clause("MRG-003")
@pytest.mark.needs("merge_lora")
def test_training_goes_on_after_a_merge(impl, fresh_dir):
    # In ranks, although one is enough: the process that forks them must not compute gradients.
    without, after = (values(run_ranks(1, train, impl, one)) for one in (None, fresh_dir() / "model"))
    assert without == after


@pytest.mark.clause("MRG-002")
@pytest.mark.needs("merge_lora")
def test_buffers_of_merged_layers_have_the_base_models_names(impl, fresh_dir):
    def with_buffer():
        model = hf.llama()
        model.model.layers[0].self_attn.q_proj.register_buffer("calls", torch.tensor(3))
        return model

    model, directory = injected(with_buffer, ["q_proj"]), fresh_dir() / "model"
    impl.save_consolidated(model, directory, merge_lora=True)
    peers = copy.deepcopy(model).merge_and_unload().state_dict()
    assert indexed_weights(directory).keys() == peers.keys()


def merge_cut(rank, world, impl, directory, lay):
    model = TRAINED["llama"].trained(impl.adapters)
    model = lay(model) if world > 1 else model
    impl.save_consolidated(model, directory, merge_lora=True)


@pytest.mark.clause("MRG-003")
@pytest.mark.needs("merge_lora")
@pytest.mark.parametrize(
    "lay",
    [sharded_tensor_parallel(2, 2), tensor_parallel, hybrid(2, 2)],
    ids=["rows and columns", "rows or columns", "HSDP"],
)
def test_model_over_any_mesh_is_merged_as_a_whole_one(impl, fresh_dir, lay):
    one, four = fresh_dir() / "one", fresh_dir() / "four"
    values(run_ranks(1, merge_cut, impl, one, lay))
    values(run_ranks(4, merge_cut, impl, four, lay, timeout=2 * SOON))
    first, second = indexed_weights(one), indexed_weights(four)
    assert same_numbers(first, second)


@pytest.mark.clause("CFG-007", "MRG-002")
@pytest.mark.needs("merge_lora")
def test_dtype_of_a_merged_model_is_its_weights_and_not_its_loras(impl, fresh_dir):
    # Of a tiny model the LoRA, which PEFT keeps in float32, is the larger part.
    config = peft.LoraConfig(r=64, lora_alpha=ALPHA, target_modules=["q_proj", "up_proj", "down_proj"])
    model, directory = peft.get_peft_model(hf.llama().to(torch.bfloat16), config), fresh_dir() / "model"
    held = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        held["lora_" in name] += parameter.numel()
    assert held[True] > held[False]
    impl.save_consolidated(model, directory, merge_lora=True)
    assert {tensor.dtype for tensor in indexed_weights(directory).values()} == {torch.bfloat16}
    said = json.loads((directory / "config.json").read_text())
    assert said.get("dtype", said.get("torch_dtype")) == "bfloat16"


def merge_rows_cut_twice(rank, world, impl, directory):
    # 42 rows in two halves, and each of these in two again: 11, 10, 11, 10.
    spec = replace(TRAINED["llama"], dense=("gate_proj",), base_settings={"intermediate_size": 42})
    model = spec.trained(impl.adapters)
    mesh = init_device_mesh("cpu", (2, world // 2)) if world > 1 else None
    for name, parameter in list(model.named_parameters()) if mesh else ():
        module, _, own = name.rpartition(".")
        placed = distribute_tensor(parameter.data, mesh, [Shard(0), Shard(0)])
        setattr(model.get_submodule(module), own, nn.Parameter(placed, parameter.requires_grad))
    impl.save_consolidated(model, directory, merge_lora=True)


@pytest.mark.clause("MRG-003", "RANK-015")
@pytest.mark.needs("merge_lora")
def test_rows_cut_unevenly_twice_are_merged_in_their_order(impl, fresh_dir):
    one, four = fresh_dir() / "one", fresh_dir() / "four"
    values(run_ranks(1, merge_rows_cut_twice, impl, one))
    values(run_ranks(4, merge_rows_cut_twice, impl, four, timeout=2 * SOON))
    assert same_numbers(indexed_weights(one), indexed_weights(four))


def in_bfloat16(model):
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.bfloat16()
    return model


@pytest.mark.clause("MRG-002")
@pytest.mark.needs("merge_lora")
@pytest.mark.parametrize("kind", ["plain", "dora"])
def test_product_of_lora_of_few_digits_is_not_rounded(impl, fresh_dir, kind):
    model, directory = in_bfloat16(injected(*BASES["llama"], **KINDS[kind])), fresh_dir() / "model"
    impl.save_consolidated(model, directory, merge_lora=True)
    peers = copy.deepcopy(model).float().merge_and_unload().state_dict()
    for name, tensor in indexed_weights(directory).items():
        torch.testing.assert_close(tensor, peers[name], rtol=2e-5, atol=1e-6)


@pytest.mark.clause("MRG-002")
@pytest.mark.needs("merge_lora")
@pytest.mark.parametrize("kind", ["plain", "dora"])
@pytest.mark.parametrize("wrapper", ["compile", "checkpoint"])
@pytest.mark.parametrize("base", BASES)
def test_layer_that_is_wrapped_below_its_lora_is_merged_as_bare(impl, fresh_dir, base, wrapper, kind):
    model, directory = injected(*BASES[base], **KINDS[kind]), fresh_dir() / "model"
    peers = copy.deepcopy(model).merge_and_unload().state_dict()
    for name in [name for name, _ in model.named_modules() if name.endswith(".base_layer")]:
        wrap(model, name, wrapper)
    impl.save_consolidated(model, directory, merge_lora=True)
    for name, tensor in indexed_weights(directory).items():
        torch.testing.assert_close(tensor, peers[name], rtol=2e-5, atol=1e-6)


class OwnConv1D(transformers.pytorch_utils.Conv1D):
    """A trainer's own layer over GPT-2's, whose weight is [in, out]; ``scale`` and LoRA are its own."""


@pytest.mark.clause("MRG-002")
@pytest.mark.needs("merge_lora")
def test_own_class_over_a_turned_layer_is_merged_turned(impl, fresh_dir):
    model, directory = BASES["gpt2"][0](), fresh_dir() / "model"
    layer, source = model.transformer.h[0].attn.c_proj, generator(0)
    layer.__class__, layer.scale = OwnConv1D, 2.0
    layer.lora_A, layer.lora_B = nn.Linear(32, 4, bias=False), nn.Linear(4, 32, bias=False)
    for factor in (layer.lora_A, layer.lora_B):
        draw_normal(factor.weight, source, std=0.3)
    expected = layer.weight + 2.0 * (layer.lora_B.weight @ layer.lora_A.weight).T
    impl.save_consolidated(model, directory, merge_lora=True)
    (merged,) = [t for name, t in indexed_weights(directory).items() if name.endswith("h.0.attn.c_proj.weight")]
    torch.testing.assert_close(merged, expected.detach())
