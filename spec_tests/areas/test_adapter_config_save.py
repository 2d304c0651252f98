# SPDX-License-Identifier: Apache-2.0
"""`save_adapter` as a subject of its own: the tree of the hooks, the numbers, the ranks (ADP-019)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers
from torch.distributed.fsdp import fully_shard

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED, cases, loadable, tagged
from spec_tests.builders.families import outputs
from spec_tests.builders.lora import apply_dense_lora
from spec_tests.builders.tokenizers import FailingTokenizer, RecordingTokenizer, SlowTokenizer, tokenizer
from spec_tests.builders.training import shard
from spec_tests.consumers import peft as peft_reader
from spec_tests.consumers.forms import installed_form
from spec_tests.consumers.peft import expected_modules, reload
from spec_tests.harness.export import WRONG_VALUE, Adapter, refusal, save_adapter, snapshot
from spec_tests.harness.ranks import SOON, all_failed, run_ranks, values
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"), Leaf("model.layers.1.q_proj")))


def save(rank, world, impl, kind, directory, form):
    spec = TRAINED[kind]
    model = spec.trained(impl.adapters)
    model = shard(model) if world > 1 else model
    keywords = {**spec.save, **form}
    impl.save_adapter(model, directory, spec.peft_config(impl.peft_config), tokenizer=tokenizer(), **keywords)


def check_alike(directory, hooks):
    whole = Adapter(directory)
    assert snapshot(directory).keys() == snapshot(hooks.directory).keys()
    assert (whole.config, whole.metadata) == (hooks.config, hooks.metadata)
    assert whole.tensors.keys() == hooks.tensors.keys()
    assert all(torch.equal(whole.tensors[key], tensor) for key, tensor in hooks.tensors.items())


@pytest.mark.clause("ADP-019")
@pytest.mark.parametrize("kind", cases(tagged("usual")))
@pytest.mark.parametrize("world", [1, 2])
def test_tree_is_that_of_the_hooks_and_the_weights(impl, fresh_dir, kind, world):
    spec, directory = TRAINED[kind], fresh_dir() / "adapter"
    values(run_ranks(world, save, impl, kind, directory, {}))
    model, config = spec.trained(impl.adapters), spec.peft_config(impl.peft_config)
    hooks = save_adapter(impl, model, fresh_dir(), config, tokenizer=tokenizer(), **spec.save)
    check_alike(directory, hooks)


@pytest.mark.clause("ADP-019")
@pytest.mark.needs("qwen3_moe_adapter", "paramwrapper_layout")
def test_tree_in_the_legacy_layout_is_that_of_the_hooks(impl, fresh_dir):
    spec, directory, form = TRAINED["qwen3_moe_fused"], fresh_dir() / "adapter", {"legacy_paramwrapper_layout": True}
    save(0, 1, impl, "qwen3_moe_fused", directory, form)
    model, config = spec.trained(impl.adapters), spec.peft_config(impl.peft_config)
    check_alike(directory, save_adapter(impl, model, fresh_dir(), config, tokenizer=tokenizer(), **form))


@pytest.mark.clause("ADP-019", "HOOK-005")
@pytest.mark.parametrize(
    ("name", "value"),
    [("tokenizer", "org/tokenizer"), ("original_model_path", 3.5), ("v4_compatible", "no"), ("process_group", "world")],
)
def test_wrong_typed_keyword_is_refused(impl, fresh_dir, name, value):
    parent = fresh_dir()
    keywords = {"peft_config": impl.peft_config(dim=4, alpha=8), name: value}
    refusal(lambda: impl.save_adapter(TREE.build(), parent / "adapter", **keywords), parent, kinds=WRONG_VALUE)


@pytest.mark.clause("ADP-019", "LOAD-001", "LOAD-002")
@pytest.mark.parametrize("kind", loadable(["llama", "qwen3_moe_fused", "qwen3_moe_v4"]))
def test_adapter_of_sharded_ranks_computes_what_was_trained(impl, fresh_dir, kind):
    spec, directory = TRAINED[kind], fresh_dir() / "adapter"
    base = hf.save_base(spec.base(), fresh_dir())
    values(run_ranks(2, save, impl, kind, directory, installed_form() if spec.experts else {}))
    trained = outputs(spec.trained(impl.adapters), spec.inputs())
    read = reload(base, directory, spec.inputs())
    assert (read.missing, read.ignored, read.complaints) == ([], [], [])
    assert read.modules == expected_modules(Adapter(directory).modules)
    assert (trained - torch.tensor(read.base_logits)).abs().max() > 0.1
    assert (trained - torch.tensor(read.logits)).abs().max() <= 1e-5


def save_stage(rank, world, impl, directory):
    group = dist.new_group(list(range(world)))
    stage = TreeSpec((TREE.leaves[rank],))
    impl.save_adapter(stage.build(), directory, impl.peft_config(dim=4, alpha=8), pp_group=group)


@pytest.mark.clause("ADP-019", "RANK-004")
def test_pipeline_stages_are_united(impl, fresh_dir):
    directory = fresh_dir() / "adapter"
    values(run_ranks(2, save_stage, impl, directory))
    assert Adapter(directory).modules == TREE.expected_targets() == Adapter(directory).config["target_modules"]


class SaysItsRank:
    """A tokenizer whose one file says which rank wrote it."""

    def save_pretrained(self, directory):
        (Path(directory) / "tokenizer.json").write_text(json.dumps({"rank": dist.get_rank()}))


def save_in_a_group(rank, world, impl, directory):
    group = dist.new_group([1, 2])
    if rank != 3:
        config = impl.peft_config(dim=4, alpha=8)
        impl.save_adapter(TREE.build(), directory, config, tokenizer=SaysItsRank(), process_group=group)


@pytest.mark.clause("ADP-019", "RANK-006")
def test_group_saves_by_itself(impl, fresh_dir):
    directory = fresh_dir() / "adapter"
    values(run_ranks(4, save_in_a_group, impl, directory, timeout=2 * SOON))
    assert json.loads((directory / "tokenizer.json").read_text()) == {"rank": 1}
    assert Adapter(directory).modules == TREE.expected_targets()


def save_and_fail(rank, world, impl, directory):
    failing = FailingTokenizer(RuntimeError("the disk is on fire"))
    impl.save_adapter(TREE.build(), directory, impl.peft_config(dim=4, alpha=8), tokenizer=failing)


def save_with_one_bad_rank(rank, world, impl, directory):
    model = TREE.build() if rank == 0 else "the disk is on fire"
    impl.save_adapter(model, directory, impl.peft_config(dim=4, alpha=8))


def save_with_one_bad_path(rank, world, impl, directory):
    impl.save_adapter(
        TREE.build(), directory if rank == 0 else "the disk is on fire\0", impl.peft_config(dim=4, alpha=8)
    )


@pytest.mark.clause("ADP-019", "RANK-003", "RANK-007")
@pytest.mark.parametrize("body", [save_and_fail, save_with_one_bad_rank, save_with_one_bad_path])
def test_error_of_one_rank_is_every_ranks(impl, fresh_dir, body):
    parent = fresh_dir()
    results = run_ranks(2, body, impl, parent / "adapter", timeout=2 * SOON)
    assert all_failed(results), results
    assert body is save_with_one_bad_path or all("the disk is on fire" in result.error for result in results)
    assert snapshot(parent) == {}


def save_slowly(rank, world, impl, directory):
    impl.save_adapter(TREE.build(), directory, impl.peft_config(dim=4, alpha=8), tokenizer=SlowTokenizer())
    return sorted(snapshot(directory))


@pytest.mark.clause("ADP-019", "RANK-002")
def test_no_rank_returns_before_the_adapter_is_there(impl, fresh_dir):
    seen = values(run_ranks(3, save_slowly, impl, fresh_dir() / "adapter"))
    assert "adapter_model.safetensors" in seen[0]
    assert seen == [seen[0]] * 3


def count_saves(rank, world, impl, directory):
    own = RecordingTokenizer()
    impl.save_adapter(TREE.build(), directory, impl.peft_config(dim=4, alpha=8), tokenizer=own)
    return len(own.saved_to)


@pytest.mark.clause("ADP-019", "TOK-003")
def test_tokenizer_is_saved_once(impl, fresh_dir):
    assert values(run_ranks(2, count_saves, impl, fresh_dir() / "adapter")) == [1, 0]


@pytest.mark.clause("ADP-011", "ADP-019")
def test_module_whose_name_is_no_ascii_is_read_again(impl, fresh_dir):
    name, directory = "model.heads.fran\u00e7ais_\u8a13", fresh_dir() / "out"
    model = TreeSpec((Leaf(name),)).build()
    impl.save_adapter(model, directory, impl.peft_config(dim=4, alpha=8))
    written = Adapter(directory)
    assert written.modules == [name] == peft_reader.targeted(written.config, {name})
    tensor = written.tensors[f"base_model.model.{name}.lora_A.weight"]
    assert torch.equal(tensor, model.get_submodule(name).lora_A.weight)


def marian():
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "vocab_size": 64}
    sizes |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "pad_token_id": 0}
    config = transformers.MarianConfig(**sizes, decoder_start_token_id=0, max_position_embeddings=64)
    return transformers.MarianMTModel(config), ("q_proj", "v_proj")


def bert_decoder():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
    config = transformers.BertGenerationConfig(**sizes, vocab_size=64, is_decoder=True)
    return transformers.BertGenerationDecoder(config), ("query", "value")


def task_when_sharded(rank, world, impl, build, directory):
    model, names = build()
    assert model.config.architectures is None  # of a model that was not saved yet, the class is all there is
    model.requires_grad_(False)
    apply_dense_lora(model, names, dim=4, alpha=8)
    if world > 1:
        fully_shard(model)
    impl.save_adapter(model, directory, impl.peft_config(dim=4, alpha=8))
    return Adapter(directory).config["task_type"]


@pytest.mark.clause("ADP-023")
@pytest.mark.needs("save_adapter")
@pytest.mark.parametrize(("build", "task"), [(marian, "SEQ_2_SEQ_LM"), (bert_decoder, "CAUSAL_LM")])
def test_task_of_a_sharded_model_is_that_of_a_whole_one(impl, fresh_dir, build, task):
    for world in (1, 2):
        directory = fresh_dir() / "out"
        assert values(run_ranks(world, task_when_sharded, impl, build, directory)) == [task] * world
