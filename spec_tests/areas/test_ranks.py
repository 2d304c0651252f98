"""RANK: several processes save one model (spec/ranks.md). Real gloo ranks, real FSDP2."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED, cases
from spec_tests.builders.tokenizers import FailingTokenizer, SlowTokenizer
from spec_tests.builders.training import shard
from spec_tests.builders.wrappers import wrap
from spec_tests.harness.export import (
    OPTIONAL,
    WEIGHTS,
    error_of,
    hook_files,
    run_consolidated,
    run_hook,
    save_adapter,
    save_metadata,
    snapshot,
    stage_metadata,
    text_of,
)
from spec_tests.harness.ranks import SOON, all_failed, run_ranks, values
from spec_tests.strategies.experts import MoESpec, moe_model, without_lora
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"), Leaf("model.layers.1.q_proj")))


def save_sharded(rank, world, impl, kind, directory):
    """Each rank has a directory of its own: what is in it was written by that rank."""
    spec = TRAINED[kind]
    model = shard(spec.trained(impl.adapters))
    tensors = impl.adapter_tensors(impl.model_state(model, is_peft=True), **spec.save)
    mine = directory / str(rank)
    mine.mkdir()
    save_metadata(impl, model, mine, spec.peft_config(impl.peft_config), **spec.save)
    if rank == 0:
        save_file({key: tensors[key].contiguous() for key in sorted(tensors)}, mine / WEIGHTS)


@pytest.mark.clause("RANK-001")
@pytest.mark.parametrize("kind", cases(["llama", "llama_dora", "qwen3_moe_fused", "qwen3_moe_v4"]))
def test_sharded_ranks_write_what_one_process_writes(impl, fresh_dir, kind):
    # Three ranks do not get equal shares of the experts.
    spec, directory, world = TRAINED[kind], fresh_dir(), 3 if kind == "qwen3_moe_v4" else 2
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
    expected = [*hook_files(impl), "tokenizer.json"]
    assert values(run_ranks(3, save_slowly, impl, fresh_dir())) == [expected] * 3


def save_with_rank_zero_failing(rank, world, impl, directory):
    save_metadata(impl, TREE.build(), directory, tokenizer=FailingTokenizer(RuntimeError("the disk is on fire")))


@pytest.mark.clause("RANK-003")
@pytest.mark.parametrize("world", [2, 4])
def test_error_on_rank_zero_reaches_every_rank(impl, fresh_dir, world):
    directory = fresh_dir()
    results = run_ranks(world, save_with_rank_zero_failing, impl, directory, timeout=2 * SOON)
    assert all_failed(results), results
    assert all("the disk is on fire" in result.error for result in results)
    assert max(result.seconds for result in results) < SOON
    assert snapshot(directory) == {}


def save_different_modules(rank, world, impl, directory):
    save_metadata(impl, TreeSpec((Leaf(f"model.layers.{rank}.q_proj"),)).build(), directory)


def save_experts_of_another_layer(rank, world, impl, directory):
    model = moe_model(impl, MoESpec(rank=4, layers=tuple(range(world))))
    for other in set(range(world)) - {rank}:
        without_lora(model.get_submodule(f"model.layers.{other}.mlp.experts"))
    save_metadata(impl, model, directory)


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
    assert all_failed(results), results
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
    assert all_failed(results), results


def save_with_a_group_too_small(rank, world, impl, directory):
    group = dist.new_group([0])
    model = shard(TRAINED["llama"].trained(impl.adapters))
    config = TRAINED["llama"].peft_config(impl.peft_config)
    save_metadata(impl, model, directory, config, process_group=group)


@pytest.mark.clause("RANK-006")
def test_group_that_lacks_a_rank_of_the_model_is_refused(impl, fresh_dir):
    directory = fresh_dir()
    first, _ = run_ranks(2, save_with_a_group_too_small, impl, directory, timeout=2 * SOON)
    assert all_failed([first]), first
    assert snapshot(directory) == {}


@pytest.mark.clause("RANK-005")
@pytest.mark.parametrize(
    "save",
    [
        save_different_modules,
        pytest.param(save_experts_of_another_layer, marks=pytest.mark.needs("qwen3_moe_adapter")),
    ],
)
def test_different_modules_without_a_pipeline_group_are_refused(impl, fresh_dir, save):
    directory = fresh_dir()
    results = run_ranks(2, save, impl, directory, timeout=2 * SOON)
    assert all_failed(results), results
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
    assert written == [[], hook_files(impl), [], []]


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
    assert all_failed(results), results
    assert all(named in result.error for result in results)
    assert max(result.seconds for result in results) < SOON
    assert snapshot(directory) == {}


def bring_out_with_one_rank_called_wrongly(rank, world, impl, staged, consolidated, bad, value):
    paths = {"consolidated_path": str(consolidated), "hf_metadata_path": str(staged)}
    run_consolidated(impl, "post_save", **paths | ({"consolidated_path": value} if rank == bad else {}))


@pytest.mark.clause("RANK-007")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize("value", [3.5, b"out"], ids=["no path", "bytes"])
def test_post_save_that_one_rank_calls_wrongly_is_refused_on_all(impl, fresh_dir, value):
    staged, consolidated = stage_metadata(impl, hf.llama(), fresh_dir()), fresh_dir()
    arguments = (impl, staged, consolidated, 1, value)
    results = run_ranks(2, bring_out_with_one_rank_called_wrongly, *arguments, timeout=2 * SOON)
    assert all_failed(results), results
    assert max(result.seconds for result in results) < SOON
    assert snapshot(consolidated) == {}


def save_ddp(rank, world, impl, kind, directory, compiled):
    spec = TRAINED[kind]
    model = DistributedDataParallel(spec.trained(impl.adapters))
    model = wrap(model, "", "compile") if compiled else model
    save_metadata(impl, model, directory, spec.peft_config(impl.peft_config), **spec.save)


@pytest.mark.clause("HOOK-007")
@pytest.mark.parametrize("compiled", [False, True], ids=["DDP", "compiled DDP"])
@pytest.mark.parametrize("kind", cases(["llama", "qwen3_moe_fused"]))
def test_ddp_gives_the_files_of_the_bare_model(impl, fresh_dir, kind, compiled):
    spec, directory = TRAINED[kind], fresh_dir()
    values(run_ranks(2, save_ddp, impl, kind, directory, compiled))
    bare = save_metadata(impl, spec.trained(impl.adapters), fresh_dir(), spec.peft_config(impl.peft_config))
    assert snapshot(directory) == snapshot(bare.directory)


@pytest.mark.clause("RANK-008")
@pytest.mark.parametrize(
    ("rank", "local", "refused"), [("1", "1", True), ("1", "0", True), ("2", None, True), ("0", "0", False)]
)
def test_rank_without_a_group_is_refused(impl, fresh_dir, monkeypatch, rank, local, refused):
    monkeypatch.setenv("RANK", rank)
    if local is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", local)
    directory = fresh_dir()
    error = error_of(lambda: save_metadata(impl, TREE.build(), directory))
    assert (error is not None) is refused
    assert (snapshot(directory) == {}) is refused
