# SPDX-License-Identifier: Apache-2.0
"""IDX: the mappings and the index of weights files (spec/index.md)."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.families import SMALL_FILES, outputs, text_inputs
from spec_tests.builders.training import shard_whole
from spec_tests.consumers import headers
from spec_tests.consumers.transformers import reload
from spec_tests.harness.export import (
    INDEX_MAPPING,
    WRONG_VALUE,
    bring_out,
    indexed_weights,
    refusal,
    snapshot,
    spelled,
    stage_metadata,
)
from spec_tests.harness.ranks import run_ranks, values

DTYPES = "fqn_to_dtype_mapping.json"


@pytest.mark.clause("IDX-002")
@given(mapping=st.dictionaries(st.from_regex(r"[a-z][a-z0-9.]{0,12}", fullmatch=True), st.integers(1, 99), min_size=1))
def test_index_mapping_is_written_as_given(impl, fresh_dir, mapping):
    staged = stage_metadata(impl, hf.llama(), fresh_dir(), fqn_to_file_index_mapping=mapping)
    assert json.loads((staged / INDEX_MAPPING).read_text()) == mapping


dtypes = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9.]{0,12}", fullmatch=True),
    st.sampled_from(["BF16", "F32", "F8_E4M3", "U8"]),
    min_size=1,
)


@pytest.mark.clause("IDX-006")
@given(mapping=dtypes)
def test_dtype_mapping_is_written_as_given_and_stays_inside(impl, fresh_dir, mapping):
    staged, consolidated = stage_metadata(impl, hf.llama(), fresh_dir(), fqn_to_dtype_mapping=mapping), fresh_dir()
    bring_out(impl, staged, consolidated)
    assert json.loads((staged / DTYPES).read_text()) == mapping
    assert "config.json" in snapshot(consolidated)
    assert DTYPES not in snapshot(consolidated)


@pytest.mark.clause("IDX-006")
@pytest.mark.parametrize("empty", [{"fqn_to_dtype_mapping": None}, {"fqn_to_dtype_mapping": {}}, {}], ids=str)
def test_without_a_dtype_mapping_there_is_no_file(impl, fresh_dir, empty):
    directory, plain = fresh_dir(), stage_metadata(impl, hf.llama(), fresh_dir())
    stage_metadata(impl, hf.llama(), directory, fqn_to_dtype_mapping={"lm_head.weight": "BF16"})
    stage_metadata(impl, hf.llama(), directory, **empty)
    assert snapshot(directory) == snapshot(plain)


@pytest.mark.clause("IDX-006")
@pytest.mark.parametrize("mapping", [["a"], {"a": 1}, {1: "BF16"}, "BF16"], ids=str)
def test_dtype_mapping_of_another_type_is_named(impl, fresh_dir, mapping):
    directory = fresh_dir()
    refusal(
        lambda: stage_metadata(impl, hf.llama(), directory, fqn_to_dtype_mapping=mapping),
        directory,
        naming=spelled(impl, "ConsolidatedHFAddon.pre_save", "fqn_to_dtype_mapping"),
        kinds=WRONG_VALUE,
    )


def save_sharded(rank, world, impl, directory, seed):
    model = shard_whole(hf.llama(seed=seed))
    impl.save_consolidated(model, directory)
    return {name: _whole(tensor) for name, tensor in model.state_dict().items()}


def _whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@pytest.mark.clause("IDX-001")
@pytest.mark.parametrize(("first", "then"), [(4, 2), (2, 4), (2, 1)])
def test_earlier_shards_leave_nothing_behind(impl, fresh_dir, first, then):
    directory = fresh_dir() / "model"
    values(run_ranks(first, save_sharded, impl, directory, 1))
    (live, *_) = values(run_ranks(then, save_sharded, impl, directory, 2))
    saved = indexed_weights(directory)
    assert saved.keys() == live.keys()
    assert all(torch.equal(saved[name], live[name]) for name in live)


@pytest.mark.clause("IDX-003")
@pytest.mark.parametrize("size", [1, 9_000, SMALL_FILES, 10**9])
def test_index_names_every_tensor_where_it_is(impl, fresh_dir, size):
    directory, model = fresh_dir() / "model", hf.llama()
    impl.save_consolidated(model, directory, max_shard_bytes=size)
    index = headers.index(directory)["weight_map"]
    found = {}
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        found.update(dict.fromkeys(tensors, path.name))
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        assert total <= size or len(tensors) == 1, path.name
    assert index == found
    assert found.keys() == model.state_dict().keys()


@pytest.mark.clause("IDX-005")
@pytest.mark.parametrize("name", ["lr=[0.1]", "a*b?", "two words", "größe-模型", "model.v2", "{x}"])
def test_name_of_the_destination_makes_no_difference(impl, fresh_dir, name):
    parent, model = fresh_dir(), hf.llama()
    impl.save_consolidated(model, parent / name)
    saved = indexed_weights(parent / name)
    assert all(torch.equal(saved[key], tensor) for key, tensor in model.state_dict().items())
    assert [path.name for path in parent.iterdir()] == [name]


@pytest.mark.clause("IDX-007")
@pytest.mark.needs("save_consolidated")
def test_tensor_whose_name_is_no_ascii_is_read_again(impl, fresh_dir):
    directory, model = fresh_dir() / "model", nn.Module()
    model.heads = nn.ModuleDict({"fran\u00e7ais_\u8a13": nn.Linear(3, 5), "plain": nn.Linear(3, 5)})
    impl.save_consolidated(model, directory)
    found = indexed_weights(directory)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


class WithDraft(transformers.LlamaForCausalLM):
    """A tied model with a second head, whose name ends like the first's."""

    def __init__(self, config):
        super().__init__(config)
        self.draft_lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.draft_lm_head.weight = self.model.embed_tokens.weight


@pytest.mark.clause("IDX-004")
@pytest.mark.needs("save_consolidated")
def test_weight_shared_under_a_longer_name_is_saved_under_it(impl, fresh_dir):
    directory, model = fresh_dir() / "model", WithDraft(hf.llama(tied=True).config)
    impl.save_consolidated(model, directory)
    found = indexed_weights(directory)
    assert torch.equal(found["draft_lm_head.weight"], model.draft_lm_head.weight)
    assert "lm_head.weight" not in found


@pytest.mark.clause("IDX-004")
@pytest.mark.parametrize("tied_by", ["config", "hand"])
def test_shared_memory_is_saved_so_that_it_comes_back(impl, fresh_dir, tied_by):
    model = hf.llama(tied=tied_by == "config")
    if tied_by == "hand":  # which nothing on disk says
        model.lm_head.weight = model.model.embed_tokens.weight
    directory = fresh_dir() / "model"
    impl.save_consolidated(model, directory)
    assert ("lm_head.weight" in indexed_weights(directory)) is (tied_by == "hand")
    read = reload(directory, "AutoModelForCausalLM", text_inputs())
    assert (read.missing, read.unexpected, read.complaints) == ([], [], [])
    assert (torch.tensor(read.outputs) - outputs(model, text_inputs())).abs().max() <= 1e-5
