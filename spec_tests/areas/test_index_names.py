# SPDX-License-Identifier: Apache-2.0
"""IDX for the names and layouts in which transformers publishes its models (spec/index.md)."""

from __future__ import annotations

import functools
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from spec_tests.builders import families, hf
from spec_tests.builders.training import shard_whole
from spec_tests.harness.export import REFUSED, error_of, indexed_weights
from spec_tests.harness.ranks import run_ranks, values

pytestmark = pytest.mark.needs("save_consolidated")


def gpt_neox():
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": 64, "max_position_embeddings": 64}
    return hf.build(transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig, "tiny/neox", sizes, 0)


def vit():
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"image_size": 16, "patch_size": 8}
    return hf.build(transformers.ViTForImageClassification, transformers.ViTConfig, "tiny/vit", sizes, 0)


def encoder_decoder():
    """Two models in one: head and embedding of the decoder are tied, and the encoder has another embedding."""
    settings = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    bert = transformers.BertConfig(**settings, num_attention_heads=4)
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
    return transformers.EncoderDecoderModel(config=both).eval()


def marian():
    """Its positions are computed, and never saved."""
    sizes = {"vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48}
    sizes |= {"decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 0}
    sizes |= {"decoder_start_token_id": 0, "max_position_embeddings": 64}
    return hf.build(transformers.MarianMTModel, transformers.MarianConfig, "tiny/marian", sizes, 0)


MODELS = {
    "qwen3_moe": hf.qwen3_moe,
    "gpt_neox": gpt_neox,
    "vit": vit,
    "llama": hf.llama,
    "encoder_decoder": encoder_decoder,
    "marian": marian,
}


def published(model, directory):
    """What save_pretrained writes of the model."""
    model.save_pretrained(directory)
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def save(rank, world, impl, kind, directory, more):
    torch.manual_seed(0)
    model = MODELS[kind]()
    impl.save_consolidated(shard_whole(model), directory, **more)


def assert_same(found, peers):
    assert found.keys() == peers.keys()
    for name, tensor in peers.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.clause("IDX-015")
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("kind", MODELS)
def test_tensors_are_those_that_transformers_publishes(impl, fresh_dir, kind, world):
    directory = fresh_dir() / "model"
    values(run_ranks(world, save, impl, kind, directory, {}))
    torch.manual_seed(0)
    assert_same(indexed_weights(directory), published(MODELS[kind](), fresh_dir()))


INNER = {
    "towers": ("vlm", lambda model: [model.model.vision_tower, model.model.language_model]),
    "vlm": ("vlm", lambda model: [model.model]),
    "qwen3_moe": ("qwen3_moe", lambda model: [model.model]),
}
"""The family, and its submodels that are sharded."""


def save_sharded_inside(rank, world, impl, kind, directory):
    family, submodels = INNER[kind]
    model = families.MODELS[family].build()
    for inner in submodels(model):
        inner.register_module("not_there", None)  # as a model has it that leaves a part of itself out
        shard_whole(inner)
    impl.save_consolidated(model, directory)


@pytest.mark.clause("IDX-015")
@pytest.mark.parametrize("kind", INNER)
def test_names_are_the_same_where_submodels_alone_are_sharded(impl, fresh_dir, kind):
    directory = fresh_dir() / "model"
    values(run_ranks(2, save_sharded_inside, impl, kind, directory))
    assert_same(indexed_weights(directory), published(families.MODELS[INNER[kind][0]].build(), fresh_dir()))


class Stage(torch.nn.Module):
    """A pipeline stage that is a plain module."""

    def __init__(self, whole):
        super().__init__()
        self.model, self.lm_head = whole.model, whole.lm_head


@pytest.mark.clause("IDX-015")
@pytest.mark.needs("model_parts")
def test_stage_that_is_a_plain_module_has_the_same_names(impl, fresh_dir):
    whole, directory = hf.qwen3_moe(), fresh_dir() / "model"
    peers = published(whole, fresh_dir())
    first, second = hf.qwen3_moe(), Stage(hf.qwen3_moe())
    layers, embedding = first.model.layers, second.model.embed_tokens
    first.model.layers = torch.nn.ModuleDict({"0": layers[0]})
    second.model.layers = torch.nn.ModuleDict({"1": second.model.layers[1]})
    del first.model.norm, first.lm_head, second.model.embed_tokens, embedding
    impl.save_consolidated([first, second], directory)
    assert_same(indexed_weights(directory), peers)


def of_experts():
    """A LLaVA whose language model, a model of its own inside, has experts."""
    return families.vision_language(text_config={"model_type": "qwen3_moe", **hf.qwen3_moe().config.to_diff_dict()})


@pytest.mark.clause("IDX-015")
@pytest.mark.needs("model_parts")
def test_stage_that_alone_has_a_submodel_has_the_same_names(impl, fresh_dir):
    directory, peers = fresh_dir() / "model", published(of_experts(), fresh_dir())
    first, second = of_experts(), of_experts()
    first.model.language_model = first.lm_head = None
    second.model.vision_tower = second.model.multi_modal_projector = None
    impl.save_consolidated([first, second], directory)
    assert_same(indexed_weights(directory), peers)


@pytest.mark.clause("IDX-015")
def test_form_of_transformers_4_has_the_same_tensors(impl, fresh_dir):
    original, directory = fresh_dir(), fresh_dir() / "model"
    model = hf.qwen3_moe()
    peers = published(model, original)
    impl.save_consolidated(model, directory, v4_compatible=True, original_model_path=str(original))
    assert_same(indexed_weights(directory), peers)


@pytest.mark.clause("IDX-015")
def test_model_that_was_loaded_keeps_the_names_that_it_had(impl, fresh_dir):
    first, directory = fresh_dir(), fresh_dir() / "model"
    peers = published(hf.qwen3_moe(), first)
    impl.save_consolidated(transformers.Qwen3MoeForCausalLM.from_pretrained(first), directory)
    assert_same(indexed_weights(directory), peers)


def prefixed(name):
    """As version 4 has it."""
    return re.sub(r"(^|\.)vision_tower\.(?!vision_model\.)", r"\1vision_tower.vision_model.", name)


def of_version_4(directory, files=1):
    """A LLaVA as version 4 has published it; in two files the towers are in the second."""
    tensors = {prefixed(name): tensor for name, tensor in published(families.vision_language(), directory).items()}
    for path in directory.glob("*.safetensors*"):
        path.unlink()
    if files == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    for at in range(files if files > 1 else 0):
        part = {name: tensor for name, tensor in tensors.items() if ("vision_tower" in name) == bool(at)}
        save_file(part, directory / f"model-0000{at + 1}-of-00002.safetensors", {"format": "pt"})
    return tensors


@pytest.mark.clause("IDX-016")
def test_tower_that_was_read_with_its_prefix_keeps_it(impl, fresh_dir):
    original, directory = fresh_dir(), fresh_dir() / "model"
    peers = of_version_4(original)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(original)
    impl.save_consolidated(model, directory, v4_compatible=True, original_model_path=str(original))
    found = {re.sub(r"^(model\.)?", "", name) for name in indexed_weights(directory)}
    assert found == {re.sub(r"^(model\.)?", "", name) for name in peers}


def save_read(rank, world, impl, original, directory):
    model = shard_whole(transformers.LlavaForConditionalGeneration.from_pretrained(original))
    impl.save_consolidated(model, directory)


@pytest.mark.clause("IDX-015")
def test_sharded_model_that_was_read_keeps_the_names_that_it_had(impl, fresh_dir):
    original, alone, directory = fresh_dir(), fresh_dir() / "model", fresh_dir() / "model"
    of_version_4(original)
    impl.save_consolidated(transformers.LlavaForConditionalGeneration.from_pretrained(original), alone)
    values(run_ranks(2, save_read, impl, original, directory))
    assert indexed_weights(directory).keys() == indexed_weights(alone).keys()


@pytest.mark.clause("IDX-016")
@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("read", [False, True], ids=["made from its config", "read without the prefix"])
def test_tower_without_its_prefix_is_not_for_version_4(impl, fresh_dir, read, files):
    original, newer, directory = fresh_dir(), fresh_dir(), fresh_dir() / "model"
    of_version_4(original, files)
    model = families.vision_language()
    if read:
        model.save_pretrained(newer)
        model = transformers.LlavaForConditionalGeneration.from_pretrained(newer)
    save = functools.partial(impl.save_consolidated, model, directory, original_model_path=str(original))
    error = error_of(functools.partial(save, v4_compatible=True))
    if error is None:
        towers = [name for name in indexed_weights(directory) if "vision_tower" in name]
        assert towers == [prefixed(name) for name in towers]
    else:
        assert isinstance(error, REFUSED), error
        assert "vision_tower" in str(error)
        assert not directory.exists()
        save()
