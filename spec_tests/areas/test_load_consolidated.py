# SPDX-License-Identifier: Apache-2.0
"""LOAD: whole checkpoints of real ranks and FSDP2, as transformers reads them (spec/load.md)."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spec_tests.builders import hf
from spec_tests.builders.experts import to_native_moe
from spec_tests.builders.families import MODELS, SMALL_FILES, WHOLE, outputs, text_inputs
from spec_tests.builders.training import shard_whole
from spec_tests.consumers.forms import FUSED_WEIGHTS, is_read
from spec_tests.consumers.transformers import reload
from spec_tests.harness.export import indexed_weights, snapshot
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.implementations import copies


def save_and_run(rank, world, impl, family, directory, save):
    kind = MODELS[family]
    model = shard_whole(kind.build())
    pending = impl.save_consolidated(model, directory, max_shard_bytes=SMALL_FILES, **save)
    if save.get("asynchronous"):
        pending.result()
    # The outputs are of float32 whatever the weights are.
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return outputs(model, kind.inputs())


@pytest.mark.clause("LOAD-003", "IDX-004")
@pytest.mark.parametrize("family", WHOLE)
@pytest.mark.parametrize("world", [1, 2])
def test_transformers_loads_what_the_ranks_had(impl, fresh_dir, family, world):
    directory, kind = fresh_dir() / "model", MODELS[family]
    (live, *_) = values(run_ranks(world, save_and_run, impl, family, directory, {}))
    read = reload(directory, kind.auto_class, kind.inputs())
    assert (read.missing, read.unexpected, read.mismatched, read.errors, read.complaints) == ([], [], [], [], [])
    assert (torch.tensor(read.outputs) - live).abs().max() <= 1e-5
    tied = {"llama_tied": 2, "t5": 4, "bert_masked_lm": 2}
    assert max((len(group) for group in read.tied), default=1) == tied.get(family, 1)


@pytest.mark.clause("LOAD-003", "POST-008")
@pytest.mark.parametrize("family", ["llama_tied"])
def test_asynchronous_save_loads_too(impl, fresh_dir, family):
    directory, kind = fresh_dir() / "model", MODELS[family]
    (live, *_) = values(run_ranks(2, save_and_run, impl, family, directory, {"asynchronous": True}))
    read = reload(directory, kind.auto_class, kind.inputs())
    assert (torch.tensor(read.outputs) - live).abs().max() <= 1e-5


def save_native_moe(rank, world, impl, directory, save):
    model = hf.qwen3_moe()
    to_native_moe(model)
    model.state_dict_adapter = impl.adapters["qwen3_moe"](model.config)
    model = shard_whole(model)
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
    experts = [name for name in indexed_weights(directory) if ".experts." in name]
    one_by_one = [re.search(r"\.experts\.\d+\.(gate|up|down)_proj\.weight$", name) is not None for name in experts]
    assert set(one_by_one) == {form == "one by one"}


@pytest.mark.clause("LOAD-003")
@pytest.mark.needs("save_consolidated")
def test_write_that_the_system_cuts_short_goes_on(impl, fresh_dir, monkeypatch):
    # Linux writes 2 GiB at most at once, and less where a disk or a quota is nearly full.
    usual, cut, pwrite = fresh_dir() / "model", fresh_dir() / "model", os.pwrite
    impl.save_consolidated(hf.llama(), usual)
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: pwrite(file, memoryview(content)[:1000], at))
    impl.save_consolidated(hf.llama(), cut)
    assert snapshot(cut) == snapshot(usual)


UNDER_TORCHRUN = """
import gc
import os
import sys
from pathlib import Path
gc.disable()  # looking for garbage takes a fifth of the time of the imports
import torch.distributed as dist
from spec_tests.builders import hf
from spec_tests.builders.training import shard_whole
from spec_tests.loading import load
dist.init_process_group("gloo")
model = shard_whole(hf.llama(tied=True))
load(sys.argv[1]).save_consolidated(model, Path(sys.argv[2]), max_shard_bytes=int(sys.argv[3]))
dist.destroy_process_group()
# torch 2.13 aborts now and then when an interpreter ends that has had FSDP2 over gloo, saved or not.
os._exit(0)
"""


@pytest.mark.long
@pytest.mark.clause("LOAD-003")
def test_save_under_torchrun_is_that_of_one_process(impl, impl_name, fresh_dir):
    directory, script = fresh_dir() / "model", fresh_dir() / "train.py"
    script.write_text(UNDER_TORCHRUN)
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, str(script), impl_name, str(directory), str(SMALL_FILES)]
    # Each process makes a copy of its own where a copy is tested, and all have to call it the same.
    name = f"vendored_{secrets.token_hex(6)}"
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", copies.NAME: name}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone = fresh_dir() / "model"
    impl.save_consolidated(hf.llama(tied=True), alone, max_shard_bytes=SMALL_FILES)
    assert snapshot(directory) == snapshot(alone)


@pytest.mark.clause("LOAD-004", "CFG-007")
@pytest.mark.parametrize("world", [1, 2])
def test_saved_dtype_is_the_files_and_not_the_live_models(impl, fresh_dir, world):
    directory = fresh_dir() / "model"
    (live, *_) = values(run_ranks(world, save_and_run, impl, "llama", directory, {"dtype": torch.bfloat16}))
    assert live.dtype == torch.float32
    assert {tensor.dtype for tensor in indexed_weights(directory).values()} == {torch.bfloat16}
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    read = reload(directory, "AutoModelForCausalLM", text_inputs())
    assert (read.dtype, read.dtypes) == ("bfloat16", ["bfloat16"])
    assert torch.allclose(torch.tensor(read.outputs), live, atol=0.3)
