"""RANK: several processes save one model (spec/ranks.md). Real gloo ranks, real FSDP2."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from spec_tests.builders.tokenizers import FailingTokenizer
from spec_tests.builders.trained import KINDS, cases
from spec_tests.builders.training import shard
from spec_tests.harness.export import (
    OPTIONAL,
    WEIGHTS,
    error_of,
    run_hook,
    save_adapter,
    save_metadata,
    snapshot,
    text_of,
)
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.strategies.experts import MoESpec
from spec_tests.strategies.trees import Leaf, TreeSpec

# Seconds; far below any group's timeout, far above what a loaded machine takes. Mutants that hang are given less.
SOON = float(os.environ.get("ADDONS_SPEC_SOON", "20"))
TREE = TreeSpec((Leaf("model.layers.0.q_proj"), Leaf("model.layers.1.q_proj")))


class SlowTokenizer:
    """Takes its time, so that a rank that does not wait is seen."""

    def save_pretrained(self, directory):
        time.sleep(0.5)
        (Path(directory) / "tokenizer.json").write_text("{}")


def sharded(spec, impl, ranks=None):
    from torch.distributed.device_mesh import init_device_mesh

    model = spec.trained(impl.adapters)
    return shard(model, init_device_mesh("cpu", (dist.get_world_size(),)) if ranks is None else ranks)


def save_sharded(rank, world, impl, kind, directory):
    """Each rank has a directory of its own: what is in it was written by that rank."""
    spec = KINDS[kind]
    model = sharded(spec, impl)
    tensors = impl.adapter_tensors(impl.model_state(model, is_peft=True), **spec.save)
    mine = directory / str(rank)
    mine.mkdir()
    save_metadata(impl, model, mine, spec.peft_config(impl.peft_config), **spec.save)
    if rank == 0:
        save_file({key: tensors[key].contiguous() for key in sorted(tensors)}, mine / WEIGHTS)


@pytest.mark.clause("RANK-001")
@pytest.mark.parametrize("kind", cases(KINDS, ["llama", "llama_dora", "qwen3_moe_fused", "qwen3_moe_v4"]))
def test_sharded_ranks_write_what_one_process_writes(impl, fresh_dir, kind):
    # Three ranks do not get equal shares of the experts.
    spec, directory, world = KINDS[kind], fresh_dir(), 3 if kind == "qwen3_moe_v4" else 2
    values(run_ranks(world, save_sharded, impl, kind, directory))
    alone = save_adapter(
        impl, spec.trained(impl.adapters), fresh_dir(), spec.peft_config(impl.peft_config), **spec.save
    )
    assert snapshot(directory / "0") == snapshot(alone.directory)
    assert [snapshot(directory / str(rank)) for rank in range(1, world)] == [{}] * (world - 1)


def save_slowly(rank, world, impl, directory):
    save_metadata(impl, TREE.build(), directory, tokenizer=SlowTokenizer())
    return sorted(snapshot(directory))


@pytest.mark.clause("RANK-002")
def test_no_rank_returns_before_the_files_are_there(impl, fresh_dir):
    expected = ["adapter_config.json", "automodel_peft_config.json", "tokenizer.json"]
    assert values(run_ranks(3, save_slowly, impl, fresh_dir())) == [expected] * 3


def save_with_rank_zero_failing(rank, world, impl, directory):
    save_metadata(impl, TREE.build(), directory, tokenizer=FailingTokenizer(RuntimeError("the disk is on fire")))


@pytest.mark.clause("RANK-003")
@pytest.mark.parametrize("world", [2, 4])
def test_error_on_rank_zero_reaches_every_rank(impl, fresh_dir, world):
    directory = fresh_dir()
    results = run_ranks(world, save_with_rank_zero_failing, impl, directory, timeout=2 * SOON)
    assert all(result.error_type not in (None, "Timeout") for result in results), results
    assert all("the disk is on fire" in result.error for result in results)
    assert max(result.seconds for result in results) < SOON
    assert snapshot(directory) == {}


def save_stage(rank, world, impl, directory, stages):
    tree = TreeSpec(stages[rank])
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
    for keys, config in results:
        assert config["target_modules"] == expected
        assert keys == sorted(written)
        assert config == results[0][1]
    assert {key.split(".lora_")[0].removeprefix("base_model.model.") for key in written} == set(expected)


def experts_of(impl, layers):
    """These layers of a mixture of experts with layers 0 to 2, of which layer 0's experts carry no LoRA."""
    model = MoESpec(layers=(0, 1, 2), rank=4).build()
    model.state_dict_adapter = impl.adapters["qwen3_moe"](model.config)
    for name in ("gate_and_up_A", "gate_and_up_B", "down_A", "down_B"):
        delattr(model.get_submodule("model.layers.0.mlp.experts"), f"lora_{name}")
    for layer in set("012") - set(layers):
        del model.model.layers[layer]
    return model


def save_stage_of_experts(rank, world, impl, directory, stages):
    group = dist.new_group(list(range(world)))
    mine = directory / str(rank)
    mine.mkdir()
    save_adapter(impl, experts_of(impl, stages[rank]), mine, pp_group=group)


@pytest.mark.clause("RANK-004", "TGT-020")
@pytest.mark.parametrize("stages", [("01", "2"), ("12", "0")])
def test_experts_on_several_stages_are_united(impl, fresh_dir, stages):
    directory = fresh_dir()
    values(run_ranks(2, save_stage_of_experts, impl, directory, stages))
    alone = save_adapter(impl, experts_of(impl, "012"), fresh_dir())
    assert snapshot(directory / "0") == snapshot(alone.directory)


def save_stage_of_shards(rank, world, impl, directory):
    """Two stages of a Llama, each sharded over two ranks: ranks 0, 1 hold layer 0 and ranks 2, 3 layer 1."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    spec = KINDS["llama"]
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
    spec, directory = KINDS["llama"], fresh_dir()
    values(run_ranks(4, save_stage_of_shards, impl, directory))
    alone = save_adapter(impl, spec.trained(impl.adapters), fresh_dir(), spec.peft_config(impl.peft_config))
    assert snapshot(directory) == snapshot(alone.directory)


def save_different_modules(rank, world, impl, directory):
    save_metadata(impl, TreeSpec((Leaf(f"model.layers.{rank}.q_proj"),)).build(), directory)


def save_in_different_forms(rank, world, impl, directory):
    save_metadata(impl, TREE.build(), directory, v4_compatible=rank == 1)


def save_with_different_alpha(rank, world, impl, directory):
    tree = TreeSpec(TREE.leaves, alpha=8 + rank)
    save_metadata(impl, tree.build(), directory, impl.peft_config(dim=4, alpha=8 + rank))


def forget_the_pipeline(rank, world, impl, directory):
    group = dist.new_group(list(range(world)))
    save_metadata(impl, TREE.build(), directory, pp_group=group if rank == 0 else None)


@pytest.mark.clause("RANK-005")
@pytest.mark.parametrize("body", [save_in_different_forms, save_with_different_alpha, forget_the_pipeline])
def test_ranks_that_save_different_things_are_refused(impl, fresh_dir, body):
    directory = fresh_dir()
    results = run_ranks(2, body, impl, directory, timeout=2 * SOON)
    assert all(result.error_type not in (None, "Timeout") for result in results), results
    assert snapshot(directory) == {}


class UnspeakableError(Exception):
    """An error that fails again when it is asked what went wrong."""

    def __str__(self):
        raise RuntimeError("no message")


def fail_unspeakably(rank, world, impl, directory, error):
    save_metadata(impl, TREE.build(), directory, tokenizer=FailingTokenizer(error))


@pytest.mark.clause("RANK-003")
@pytest.mark.parametrize(
    "error", [UnspeakableError(), KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__
)
def test_error_of_any_kind_reaches_every_rank(impl, fresh_dir, error):
    results = run_ranks(2, fail_unspeakably, impl, fresh_dir(), error, timeout=2 * SOON)
    assert all(result.error_type not in (None, "Timeout") for result in results), results


def save_with_a_group_too_small(rank, world, impl, directory):
    group = dist.new_group([0])
    model = sharded(KINDS["llama"], impl)
    config = KINDS["llama"].peft_config(impl.peft_config)
    save_metadata(impl, model, directory, config, process_group=group)


@pytest.mark.clause("RANK-006")
def test_group_that_lacks_a_rank_of_the_model_is_refused(impl, fresh_dir):
    directory = fresh_dir()
    first, _ = run_ranks(2, save_with_a_group_too_small, impl, directory, timeout=2 * SOON)
    assert first.error_type not in (None, "Timeout"), first
    assert snapshot(directory) == {}


@pytest.mark.clause("RANK-005")
def test_different_modules_without_a_pipeline_group_are_refused(impl, fresh_dir):
    directory = fresh_dir()
    results = run_ranks(2, save_different_modules, impl, directory, timeout=2 * SOON)
    assert all(result.error_type not in (None, "Timeout") for result in results), results
    assert snapshot(directory) == {}


def save_in_a_group(rank, world, impl, directory, members):
    group = dist.new_group(members)
    mine = directory / str(rank)
    mine.mkdir()
    if rank in members or rank == 0:  # rank 0 is outside and calls as well; the last one does not even call
        save_metadata(impl, TREE.build(), mine, process_group=group)
    return sorted(snapshot(mine))


@pytest.mark.clause("RANK-006")
def test_group_saves_by_itself(impl, fresh_dir):
    written = values(run_ranks(4, save_in_a_group, impl, fresh_dir(), [1, 2], timeout=2 * SOON))
    assert written == [[], ["adapter_config.json", "automodel_peft_config.json"], [], []]


def fail_in_a_group(rank, world, impl, directory, members):
    group = dist.new_group(members)
    if rank in members:
        failing = FailingTokenizer(RuntimeError("the disk is on fire"))
        return text_of(
            error_of(lambda: save_metadata(impl, TREE.build(), directory, tokenizer=failing, process_group=group))
        )
    return "no part"


@pytest.mark.clause("RANK-006", "RANK-003")
def test_error_in_a_group_stays_in_it(impl, fresh_dir):
    said = values(run_ranks(3, fail_in_a_group, impl, fresh_dir(), [1, 2], timeout=2 * SOON))
    assert said[0] == "no part"
    assert all("the disk is on fire" in text for text in said[1:])


def save_with_one_rank_failing(rank, world, impl, directory, bad, how):
    save = {
        **OPTIONAL,
        "model_path": str(directory),
        "model_state": impl.model_state(TREE.build(), is_peft=True),
        "peft_config": impl.peft_config(dim=4, alpha=8, odd_setting=object() if rank == bad and how == "value" else 1),
    }
    if rank == bad and how == "keyword":
        del save["model_state"]
    run_hook(impl, "pre_save", **save)


@pytest.mark.clause("RANK-007")
@pytest.mark.parametrize(("how", "named"), [("value", "odd_setting"), ("keyword", "model_state")])
@pytest.mark.parametrize("bad", [1, 2])
def test_error_on_another_rank_reaches_every_rank(impl, fresh_dir, bad, how, named):
    directory = fresh_dir()
    results = run_ranks(3, save_with_one_rank_failing, impl, directory, bad, how, timeout=2 * SOON)
    assert all(result.error_type not in (None, "Timeout") for result in results), results
    assert all(named in result.error for result in results)
    assert max(result.seconds for result in results) < SOON
    assert snapshot(directory) == {}


def save_ddp(rank, world, impl, kind, directory):
    spec = KINDS[kind]
    model = DistributedDataParallel(spec.trained(impl.adapters))
    save_metadata(impl, model, directory, spec.peft_config(impl.peft_config), **spec.save)


@pytest.mark.clause("HOOK-007")
@pytest.mark.parametrize("kind", cases(KINDS, ["llama", "qwen3_moe_fused"]))
def test_ddp_gives_the_files_of_the_bare_model(impl, fresh_dir, kind):
    spec, directory = KINDS[kind], fresh_dir()
    values(run_ranks(2, save_ddp, impl, kind, directory))
    bare = save_metadata(impl, spec.trained(impl.adapters), fresh_dir(), spec.peft_config(impl.peft_config))
    assert snapshot(directory) == snapshot(bare.directory)


@pytest.mark.clause("RANK-008")
@pytest.mark.parametrize(("rank", "refused"), [("1", True), ("0", False)])
def test_rank_without_a_group_is_refused(impl, fresh_dir, monkeypatch, rank, refused):
    monkeypatch.setenv("RANK", rank)
    directory = fresh_dir()
    error = error_of(lambda: save_metadata(impl, TREE.build(), directory))
    assert (error is not None) is refused
    assert (snapshot(directory) == {}) is refused
