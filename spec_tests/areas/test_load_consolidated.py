# SPDX-License-Identifier: Apache-2.0
"""Whole checkpoints: IDX, POST and LOAD where weights and metadata meet. Real ranks, FSDP2, transformers reloads."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.code import remote_code_model
from spec_tests.builders.experts import to_native_moe
from spec_tests.builders.families import CONSOLIDATED, outputs, text_inputs
from spec_tests.builders.tokenizers import FailingTokenizer, tokenizer
from spec_tests.builders.training import train_steps
from spec_tests.consumers.forms import FUSED_WEIGHTS, is_read
from spec_tests.consumers.transformers import reload
from spec_tests.harness.export import error_of, snapshot
from spec_tests.harness.kill import die_at
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.implementations import copies

SMALL = 20_000  # bytes a file: even these models need several


def sharded(model, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if world > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    return model


def save_and_run(rank, world, impl, family, directory, save):
    kind = CONSOLIDATED[family]
    model = sharded(kind.build(), world)
    pending = impl.save_consolidated(model, directory, max_shard_bytes=SMALL, **save)
    if save.get("asynchronous"):
        pending.result()
    # The outputs are of float32 whatever the weights are.
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return outputs(model, kind.inputs())


def weights(directory):
    """Every tensor, by the file that the index names for it."""
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    files = {name: load_file(directory / name) for name in set(index.values())}
    return {name: files[file][name] for name, file in index.items()}


@pytest.mark.clause("LOAD-003", "IDX-004")
@pytest.mark.parametrize("family", list(CONSOLIDATED))
@pytest.mark.parametrize("world", [1, 2])
def test_transformers_loads_what_the_ranks_had(impl, fresh_dir, family, world):
    directory, kind = fresh_dir() / "model", CONSOLIDATED[family]
    (live, *_) = values(run_ranks(world, save_and_run, impl, family, directory, {}))
    read = reload(directory, kind.auto_class, kind.inputs())
    assert (read.missing, read.unexpected, read.mismatched, read.errors, read.complaints) == ([], [], [], [], [])
    assert (torch.tensor(read.outputs) - live).abs().max() <= 1e-5
    tied = {"llama_tied": 2, "t5": 4, "bert_masked_lm": 2}
    assert max((len(group) for group in read.tied), default=1) == tied.get(family, 1)


@pytest.mark.clause("LOAD-003", "POST-008")
@pytest.mark.parametrize("family", ["llama_tied"])
def test_asynchronous_save_loads_too(impl, fresh_dir, family):
    directory, kind = fresh_dir() / "model", CONSOLIDATED[family]
    (live, *_) = values(run_ranks(2, save_and_run, impl, family, directory, {"asynchronous": True}))
    read = reload(directory, kind.auto_class, kind.inputs())
    assert (torch.tensor(read.outputs) - live).abs().max() <= 1e-5


def save_native_moe(rank, world, impl, directory, save):
    model = hf.qwen3_moe()
    to_native_moe(model)
    model.state_dict_adapter = impl.adapters["qwen3_moe"](model.config)
    model = sharded(model, world)
    impl.save_consolidated(model, directory, **save)
    return outputs(model, text_inputs())


@pytest.mark.clause("LOAD-003")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("form", ["fused", "one by one"] if is_read(FUSED_WEIGHTS) else ["one by one"])
def test_grouped_experts_load_in_both_forms(impl, fresh_dir, form):
    directory, original, save = fresh_dir() / "model", fresh_dir(), {}
    if form == "one by one":
        hf.qwen3_moe().config.save_pretrained(original)
        save = {"v4_compatible": True, "original_model_path": str(original)}
    (live, *_) = values(run_ranks(2, save_native_moe, impl, directory, save))
    read = reload(directory, "AutoModelForCausalLM", text_inputs())
    assert (read.missing, read.unexpected, read.mismatched, read.complaints) == ([], [], [], [])
    assert (torch.tensor(read.outputs) - live).abs().max() <= 1e-5
    experts = [name for name in weights(directory) if ".experts." in name]
    one_by_one = [re.search(r"\.experts\.\d+\.(gate|up|down)_proj\.weight$", name) is not None for name in experts]
    assert set(one_by_one) == {form == "one by one"}


UNDER_TORCHRUN = """
import sys
from pathlib import Path
import torch.distributed as dist
from spec_tests.builders.families import CONSOLIDATED
from spec_tests.implementations.loading import load
from spec_tests.areas.test_load_consolidated import SMALL, sharded
dist.init_process_group("gloo")
model = sharded(CONSOLIDATED["llama_tied"].build(), dist.get_world_size())
load(sys.argv[1]).save_consolidated(model, Path(sys.argv[2]), max_shard_bytes=SMALL)
dist.destroy_process_group()
"""


@pytest.mark.clause("LOAD-003")
def test_save_under_torchrun_is_that_of_one_process(impl, impl_name, fresh_dir):
    directory, script = fresh_dir() / "model", fresh_dir() / "train.py"
    script.write_text(UNDER_TORCHRUN)
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, str(script), impl_name, str(directory)]
    # Each process makes a copy of its own where a copy is tested, and all have to call it the same.
    name = f"vendored_{secrets.token_hex(6)}"
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", copies.NAME: name}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone = fresh_dir() / "model"
    impl.save_consolidated(CONSOLIDATED["llama_tied"].build(), alone, max_shard_bytes=SMALL)
    assert snapshot(directory) == snapshot(alone)


@pytest.mark.clause("LOAD-004", "CFG-007")
@pytest.mark.parametrize("world", [1, 2])
def test_saved_dtype_is_the_files_and_not_the_live_models(impl, fresh_dir, world):
    directory = fresh_dir() / "model"
    (live, *_) = values(run_ranks(world, save_and_run, impl, "llama", directory, {"dtype": torch.bfloat16}))
    assert live.dtype == torch.float32
    assert {tensor.dtype for tensor in weights(directory).values()} == {torch.bfloat16}
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    read = reload(directory, "AutoModelForCausalLM", text_inputs())
    assert (read.dtype, read.dtypes) == ("bfloat16", ["bfloat16"])
    assert torch.allclose(torch.tensor(read.outputs), live, atol=0.3)


def save_trained(rank, world, impl, directory, seed):
    model = sharded(hf.llama(seed=seed), world)
    train_steps(model, 1)
    impl.save_consolidated(model, directory)
    return {name: _whole(tensor) for name, tensor in model.state_dict().items()}


def _whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@pytest.mark.clause("IDX-001")
@pytest.mark.parametrize(("first", "then"), [(4, 2), (2, 4), (2, 1)])
def test_earlier_shards_leave_nothing_behind(impl, fresh_dir, first, then):
    directory = fresh_dir() / "model"
    values(run_ranks(first, save_trained, impl, directory, 1))
    (live, *_) = values(run_ranks(then, save_trained, impl, directory, 2))
    saved = weights(directory)
    assert saved.keys() == live.keys()
    assert all(torch.equal(saved[name], live[name]) for name in live)


@pytest.mark.clause("IDX-003")
@pytest.mark.parametrize("size", [1, 9_000, SMALL, 10**9])
def test_index_names_every_tensor_where_it_is(impl, fresh_dir, size):
    directory, model = fresh_dir() / "model", hf.llama()
    impl.save_consolidated(model, directory, max_shard_bytes=size)
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        found.update(dict.fromkeys(tensors, path.name))
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        assert total <= size or len(tensors) == 1, path.name
    assert index == found
    assert found.keys() == model.state_dict().keys()


@pytest.mark.clause("POST-005", "POST-007")
@pytest.mark.parametrize(("first", "then"), [(SMALL, 10**9), (10**9, SMALL)])
def test_weights_files_of_another_cut_go(impl, fresh_dir, first, then):
    directory, model = fresh_dir() / "model", hf.llama()
    for size in (first, then):
        impl.save_consolidated(model, directory, max_shard_bytes=size)
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    assert {path.name for path in directory.glob("*.safetensors")} == set(index.values())


@pytest.mark.clause("IDX-005")
@pytest.mark.parametrize("name", ["lr=[0.1]", "a*b?", "two words", "größe-模型", "model.v2", "{x}"])
def test_name_of_the_destination_makes_no_difference(impl, fresh_dir, name):
    parent, model = fresh_dir(), hf.llama()
    impl.save_consolidated(model, parent / name)
    saved = weights(parent / name)
    assert all(torch.equal(saved[key], tensor) for key, tensor in model.state_dict().items())
    assert [path.name for path in parent.iterdir()] == [name]


@pytest.mark.clause("IDX-004")
@pytest.mark.parametrize("tied_by", ["config", "hand"])
def test_shared_memory_is_saved_so_that_it_comes_back(impl, fresh_dir, tied_by):
    model = hf.llama(tied=tied_by == "config")
    if tied_by == "hand":  # which nothing on disk says
        model.lm_head.weight = model.model.embed_tokens.weight
    directory = fresh_dir() / "model"
    impl.save_consolidated(model, directory)
    assert ("lm_head.weight" in weights(directory)) is (tied_by == "hand")
    read = reload(directory, "AutoModelForCausalLM", text_inputs())
    assert (read.missing, read.unexpected, read.complaints) == ([], [], [])
    assert (torch.tensor(read.outputs) - outputs(model, text_inputs())).abs().max() <= 1e-5


@pytest.mark.clause("CODE-005")
def test_remote_code_model_loads_in_a_clean_process(impl, fresh_dir):
    original, directory = fresh_dir(), fresh_dir() / "model"
    model = remote_code_model(original)
    impl.save_consolidated(model, directory, original_model_path=str(original), tokenizer=tokenizer())
    for path in original.rglob("*.py"):
        path.unlink()
    read = reload(directory, "AutoModelForCausalLM", text_inputs(), trust_remote_code=True)
    assert read.model_class == type(model).__name__
    assert (read.missing, read.unexpected) == ([], [])
    assert (torch.tensor(read.outputs) - outputs(model, text_inputs())).abs().max() <= 1e-5


def save_and_die(rank, world, impl, directory, width, moment):
    model = nn.Linear(width, 4)
    model.config = hf.llama().config
    model.config.hidden_size = width
    if moment:
        die_at(moment)
    impl.save_consolidated(model, directory)


def state_of(directory):
    """(width by the config, width of the weights), None for what is not there."""
    config, index = directory / "config.json", directory / "model.safetensors.index.json"
    said = json.loads(config.read_text())["hidden_size"] if config.exists() else None
    whole = index.exists() and all(
        (directory / name).exists() for name in json.loads(index.read_text())["weight_map"].values()
    )
    return said, weights(directory)["weight"].shape[1] if whole else None


@pytest.mark.clause("POST-007", "ERR-005")
@pytest.mark.parametrize("earlier", [True, False], ids=["over an earlier model", "first model"])
def test_killed_save_leaves_no_config_beside_other_weights(impl, fresh_dir, earlier):
    parent, moment, result = fresh_dir(), 0, None
    values(run_ranks(1, save_and_die, impl, parent / "earlier" / "model", 8, 0))
    while result is None or result.error_type is not None:
        moment += 1
        directory = parent / str(moment) / "model"
        directory.parent.mkdir()
        if earlier:
            shutil.copytree(parent / "earlier" / "model", directory)
        (result,) = run_ranks(1, save_and_die, impl, directory, 16, moment)
        said, found = state_of(directory)
        assert said is None or said == found, (moment, said, found)
        if moment % 5 == 0:
            values(run_ranks(1, save_and_die, impl, directory, 16, 0))
            assert state_of(directory) == (16, 16)
            assert {path.name for path in directory.parent.iterdir()} == {"model"}
            assert not [path for path in directory.iterdir() if path.name.startswith(".")]
        assert result.error_type in (None, "Exited")
    assert moment > 10


@pytest.mark.clause("POST-008")
def test_destination_is_untouched_until_the_result(impl, fresh_dir):
    directory = fresh_dir() / "model"
    impl.save_consolidated(hf.llama(seed=1), directory)
    before = snapshot(directory)
    pending = impl.save_consolidated(hf.llama(seed=2), directory, asynchronous=True)
    assert snapshot(directory) == before
    pending.result()
    assert snapshot(directory).keys() == before.keys()
    assert snapshot(directory) != before


@pytest.mark.clause("ERR-005", "ERR-001")
@pytest.mark.needs("save_consolidated")
def test_failed_save_leaves_the_earlier_checkpoint(impl, fresh_dir):
    parent = fresh_dir()
    impl.save_consolidated(hf.llama(seed=1), parent / "model")
    before = snapshot(parent)
    failing = FailingTokenizer()
    assert error_of(lambda: impl.save_consolidated(hf.llama(seed=2), parent / "model", tokenizer=failing)) is not None
    assert snapshot(parent) == before


def save_under(rank, world, impl, directory, mask):
    os.umask(mask)
    impl.save_consolidated(hf.llama(), directory, tokenizer=tokenizer())


@pytest.mark.clause("ERR-006")
@pytest.mark.needs("save_consolidated")
@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_modes_follow_the_umask(impl, fresh_dir, mask):
    directory = fresh_dir() / "model"
    values(run_ranks(1, save_under, impl, directory, mask))
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o666 & ~mask}
