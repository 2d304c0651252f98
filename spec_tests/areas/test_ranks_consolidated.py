# SPDX-License-Identifier: Apache-2.0
"""RANK for the metadata of whole models: several processes stage and bring it out (spec/ranks.md)."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.quantised import quantised_model
from spec_tests.builders.tokenizers import FailingTokenizer, SlowTokenizer
from spec_tests.builders.training import shard
from spec_tests.harness.export import bring_out, run_consolidated, snapshot, stage_metadata
from spec_tests.harness.ranks import SOON, all_failed, run_ranks, values


def stage_on_a_rank(rank, world, impl, directory, failing):
    """Stage and bring out; each rank has directories of its own."""
    mine = directory / str(rank)
    for name in ("staged", "out"):
        (mine / name).mkdir(parents=True)
    model = shard(hf.llama())
    tokens = FailingTokenizer(RuntimeError("the disk is on fire")) if failing == "tokenizer" else SlowTokenizer()
    v4_compatible = failing == "another form" and rank == 1
    stage_metadata(impl, model, mine / "staged", tokenizer=tokens, v4_compatible=v4_compatible)
    bring_out(impl, mine / "staged", mine / "out")
    return sorted(snapshot(directory))


@pytest.mark.clause("RANK-001", "RANK-002")
@pytest.mark.needs("consolidated")
def test_one_rank_stages_the_metadata_and_the_others_wait(impl, fresh_dir):
    seen = values(run_ranks(2, stage_on_a_rank, impl, fresh_dir(), None))
    expected = [f"0/out/{name}" for name in ("config.json", "generation_config.json", "tokenizer.json")]
    # What is left in the staging directory of the rank that writes is the business of POST-004.
    came_out = [[name for name in names if not name.startswith("0/staged/")] for names in seen]
    assert came_out == [[*expected, "1/out/", "1/staged/"]] * 2


@pytest.mark.clause("RANK-003", "RANK-005")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize("failing", ["tokenizer", "another form"])
def test_error_in_staging_reaches_every_rank(impl, fresh_dir, failing):
    results = run_ranks(2, stage_on_a_rank, impl, fresh_dir(), failing, timeout=2 * SOON)
    assert all_failed(results), results
    assert max(result.seconds for result in results) < SOON


def hold_of_either_dtype(rank, world, impl, directory, held):
    numbers, dtype = held[rank]
    stage = nn.Module()
    stage.register_parameter(f"of_{rank}", nn.Parameter(torch.zeros(numbers, dtype=dtype)))
    stage.config = hf.llama().config
    stage.config.num_hidden_layers = 0
    stage_metadata(impl, stage, directory)


OF_STAGES = {
    "few of the first": [(10, torch.float32), (1000, torch.bfloat16)],
    "two that hold alike": [(100, torch.bfloat16), (150, torch.float32), (100, torch.bfloat16)],
}


@pytest.mark.clause("CFG-007")
@pytest.mark.needs("consolidated", "save_consolidated")
@pytest.mark.parametrize("held", OF_STAGES.values(), ids=list(OF_STAGES))
def test_dtype_is_that_of_most_numbers_of_all_ranks(impl, fresh_dir, held):
    directory = fresh_dir()
    values(run_ranks(len(held), hold_of_either_dtype, impl, directory, held))
    said = json.loads((directory / "config.json").read_text())
    assert said.get("dtype", said.get("torch_dtype")) == "bfloat16"


def hold_quantised_on_one_rank(rank, world, impl, directory):
    model = quantised_model(torch.uint8 if rank == 1 else torch.bfloat16)
    stage_metadata(impl, model, directory)
    return hasattr(model.config, "quantization_config")


@pytest.mark.clause("RANK-004")
@pytest.mark.needs("consolidated")
def test_quantised_stage_of_another_rank_counts(impl, fresh_dir):
    directory = fresh_dir()
    assert values(run_ranks(2, hold_quantised_on_one_rank, impl, directory)) == [True, True]
    assert "quantization_config" in json.loads((directory / "config.json").read_text())


def save_in_a_group(rank, world, impl, directory, members):
    """Stage and bring out over a group; each rank has directories of its own."""
    group = dist.new_group(members)
    staged, out = directory / str(rank) / "staged", directory / str(rank) / "out"
    staged.mkdir(parents=True)
    out.mkdir()
    if rank in members or rank == 0:  # rank 0 is outside and calls as well; the last one does not even call
        stage_metadata(impl, hf.llama(), staged, process_group=group)
        places = {"consolidated_path": str(out), "hf_metadata_path": str(staged)}
        run_consolidated(impl, "post_save", **places, process_group=group)
    return [sorted(snapshot(place)) for place in (staged, out)]


@pytest.mark.clause("RANK-006")
@pytest.mark.needs("consolidated")
def test_group_stages_and_brings_out_by_itself(impl, fresh_dir):
    written = values(run_ranks(4, save_in_a_group, impl, fresh_dir(), [1, 2], timeout=2 * SOON))
    assert written.pop(1)[1] == ["config.json", "generation_config.json"]
    assert written == [[[], []]] * 3
