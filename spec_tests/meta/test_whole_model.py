# SPDX-License-Identifier: Apache-2.0
"""What the reference takes of a whole model: which of the names that share a tensor, and without a copy."""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

import addons
from addons.experts import Form
from addons.hf_names import Publication, check_original_names
from addons.modules import ModelPart, model_parts
from spec_tests.builders import hf
from spec_tests.builders.experts import to_native_moe
from spec_tests.builders.families import t5
from spec_tests.builders.lora import apply_dense_lora
from spec_tests.builders.stages import stages
from spec_tests.builders.training import shard_whole
from spec_tests.harness.export import error_of, indexed_weights
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.implementations.package import from_package

IMPLEMENTATION = from_package(addons, "bundled")
FROM_5 = pytest.mark.skipif(transformers.__version__.startswith("4."), reason="transformers 4 reverts nothing")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def shared():
    """Head and embedding are one tensor, which the config does not say."""
    model = hf.llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def test_second_name_of_a_tensor_alone_is_a_copy():
    model = shared()
    taken, live = addons.ModelState(model).state_dict(), model.state_dict()
    assert taken.keys() == live.keys()
    assert {name for name, tensor in taken.items() if tensor.data_ptr() != live[name].data_ptr()} == {HEAD}
    assert torch.equal(taken[HEAD], taken[EMBEDDING])


def test_one_name_is_left_where_transformers_ties_all_to_what_another_stage_has():
    model = t5()
    model.shared = None
    names = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    assert len({id(model.get_parameter(name)) for name in names}) == 1
    assert len(names & addons.ModelState(model).state_dict().keys()) == 1


@pytest.mark.parametrize(("build", "saved"), [(lambda: hf.llama(tied=True), False), (shared, True)])
def test_config_says_what_is_tied_where_the_model_does_not(tmp_path, build, saved):
    model = build()
    model.all_tied_weights_keys = None  # transformers 4 has no such attribute
    addons.save_consolidated(model, tmp_path / "model")
    assert (HEAD in indexed_weights(tmp_path / "model")) is saved


def test_experts_are_saved_one_by_one_for_version_4(tmp_path):
    model = hf.qwen3_moe()
    model.save_pretrained(tmp_path / "original")
    to_native_moe(model)
    model.state_dict_adapter = addons.Qwen3MoeStateDictAdapter(model.config)
    addons.save_consolidated(
        model, tmp_path / "out", v4_compatible=True, original_model_path=str(tmp_path / "original")
    )
    found, peers = (indexed_weights(tmp_path / name) for name in ("out", "original"))
    assert found.keys() == peers.keys()
    assert all(torch.equal(found[name], peer) for name, peer in peers.items())


class Plain(nn.Module):
    """A part that is no model of transformers', and has the config of one."""

    def __init__(self, whole):
        super().__init__()
        self.model, self.lm_head, self.config = whole.model, whole.lm_head, whole.config


@pytest.mark.parametrize("said_by", ["config", "class"])
def test_plain_module_ties_nothing_again(said_by):
    part = Plain(hf.llama(tied=True))
    if said_by == "class":
        part.config, part._tied_weights_keys = None, [HEAD]
    assert {HEAD, EMBEDDING} <= addons.ModelState(part).state_dict().keys()


def state_of_one_stage(rank, world):
    model = hf.llama()
    apply_dense_lora(model, ["q_proj"], dim=4, alpha=8)
    return sorted(addons.ModelState(stages(model)[rank], is_peft=True).state_dict())


def test_state_without_a_pipeline_group_is_the_ranks_own():
    for rank, names in enumerate(values(run_ranks(2, state_of_one_stage))):
        assert names
        assert all(f".layers.{rank}." in name for name in names)


@FROM_5
def test_names_are_found_out_without_memory():
    huge = {name: torch.empty(2**50, 1, 1, device="meta") for name in hf.qwen3_moe().state_dict()}
    found = Publication.of(ModelPart.of(hf.llama()), huge)
    assert (found.renamed, found.changed) == ({name: name for name in huge}, [])


class AsksForMore(transformers.LlamaForCausalLM):
    """It cannot be built from a config alone."""

    def __new__(cls, _config, _more):
        return super().__new__(cls)

    def __init__(self, config, _more):
        super().__init__(config)


def save_sharded(rank, world, directory):
    addons.save_consolidated(shard_whole(AsksForMore(hf.llama().config, 1)), directory)


def test_sharded_model_that_cannot_be_built_again_is_saved(tmp_path):
    values(run_ranks(2, save_sharded, tmp_path / "model"))
    assert indexed_weights(tmp_path / "model").keys() == hf.llama().state_dict().keys()


@pytest.mark.parametrize(
    ("theirs", "ours", "refused"),
    [
        ("model.vision_tower.vision_model.post.weight", "vision_tower.post.weight", True),
        ("vision_tower.vision_model.post.weight", "model.vision_tower.post.weight", True),
        ("model.vision_tower.post.weight", "vision_tower.post.weight", False),
        ("bert.encoder.post.weight", "encoder.post.weight", False),  # both versions read a part of a model so
    ],
)
def test_name_that_lacks_a_part_inside_is_refused(tmp_path, theirs, ours, refused):
    save_file({theirs: torch.zeros(1)}, tmp_path / "model.safetensors")
    error = error_of(lambda: check_original_names([ours], str(tmp_path)))
    assert (isinstance(error, ValueError) and "must be called" in str(error)) if refused else error is None


class Passing:
    """A conversion of the model's own that splits nothing, and has no word for it."""

    def to_hf(self, state_dict, **_settings):
        return state_dict


def gathered(model, form, monkeypatch):
    """Names of the tensors that the ranks put together."""
    names = []
    monkeypatch.setattr(addons.model_state, "wholes", lambda tensors: names.extend(name for _, name in tensors) or {})
    addons.model_state.PublishedModel(model_parts([model]), form).gather()
    return names


def test_conversion_that_splits_nothing_gathers_nothing(monkeypatch):
    model = hf.llama()
    model.state_dict_adapter = Passing()
    assert gathered(model, Form.FUSED, monkeypatch) == []


@pytest.mark.parametrize("form", [Form.FUSED, Form.PER_EXPERT])
def test_experts_alone_are_gathered_and_only_to_split_them(monkeypatch, form):
    model = hf.qwen3_moe()
    to_native_moe(model)
    model.state_dict_adapter = IMPLEMENTATION.adapters["qwen3_moe"](model.config)
    names = gathered(model, form, monkeypatch)
    assert bool(names) is (form is Form.PER_EXPERT)
    assert all(".experts." in name for name in names)


class Outer(transformers.PreTrainedModel):
    """An own model around one of transformers' that is published under other names."""

    config_class = transformers.GPTNeoXConfig

    def __init__(self, config):
        super().__init__(config)
        self.language_model = transformers.GPTNeoXForCausalLM(config)


def save_around_another(rank, world, directory):
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "vocab_size": 64}
    model = Outer(transformers.GPTNeoXConfig(**sizes, num_hidden_layers=1, max_position_embeddings=64))
    addons.save_consolidated(shard_whole(model) if world > 1 else model, directory)


def test_names_of_a_model_around_another_do_not_depend_on_shards(tmp_path):
    for world in (1, 2):
        values(run_ranks(world, save_around_another, tmp_path / str(world)))
    whole, sharded = (indexed_weights(tmp_path / str(world)).keys() for world in (1, 2))
    assert sharded == whole


def test_encoders_lose_the_name_of_their_wrapper_alone():
    names = {"model.a": "a", "b.model.a": "b.model.a", "model": "model", "model.model.c": "model.c", "d.e": "d.e"}
    names |= {f"base_model.model.{name}": f"base_model.model.{without}" for name, without in names.items()}
    tensors = {name: torch.empty(0) for name in names}
    assert list(addons.EncoderStateDictAdapter().to_hf(tensors)) == list(names.values())
