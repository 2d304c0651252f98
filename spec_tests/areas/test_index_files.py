# SPDX-License-Identifier: Apache-2.0
"""IDX and ADP: index, weights files and their headers agree, and nothing that the config counts is missing."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from hypothesis import example, given
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED, cases
from spec_tests.builders.families import MODELS, SMALL_FILES, bert_encoder, vision_language
from spec_tests.builders.odd_tensors import Tensor, holder
from spec_tests.builders.stages import stage, stages
from spec_tests.builders.training import shard, shard_whole
from spec_tests.consumers import headers
from spec_tests.harness.export import WEIGHTS, error_of, snapshot, text_of
from spec_tests.harness.ranks import SOON, all_failed, run_ranks, values
from spec_tests.strategies.tensors import file_sizes, states

SIZES = (1, SMALL_FILES, 10**12)


def disagreements(directory):
    """Whatever index, files and headers say differently of each other, by kind."""
    return {
        "ghosts": headers.ghosts(directory),
        "strangers": headers.strangers(directory),
        "unnamed files": headers.unnamed_files(directory),
        "size": headers.index(directory)["metadata"]["total_size"] - headers.bytes_of_tensors(directory),
    }


NONE = {"ghosts": [], "strangers": [], "unnamed files": [], "size": 0}


def held(rank, world, form):
    """What a rank passes on: a model that is sharded, all parts in a list, or the list of this rank's own part."""
    if form == "parts":
        parts = stages(hf.llama())
        return parts if world == 1 else [parts[rank]]
    return shard_whole(MODELS[form].build())


def save_in_sizes(rank, world, impl, parent, form, sizes, dtype):
    for size in sizes:
        impl.save_consolidated(held(rank, world, form), parent / str(size), max_shard_bytes=size, dtype=dtype)


@pytest.mark.clause("IDX-007", "IDX-008", "IDX-009")
@pytest.mark.parametrize(
    ("world", "form", "dtype"),
    [
        (1, "llama_tied", None),
        (1, "vlm", torch.bfloat16),
        (1, "parts", None),
        (2, "llama_tied", torch.bfloat16),
        (2, "parts", None),
    ],
)
def test_index_and_files_agree_both_ways(impl, fresh_dir, world, form, dtype):
    parent = fresh_dir()
    values(run_ranks(world, save_in_sizes, impl, parent, form, SIZES, dtype, timeout=2 * SOON))
    assert {size: disagreements(parent / str(size)) for size in SIZES} == dict.fromkeys(SIZES, NONE)
    cut = [len(headers.weights_files(parent / str(size))) for size in SIZES]
    assert cut == sorted(cut, reverse=True)
    assert cut[-1] == 1
    if form == "parts":
        named = headers.index(parent / "1")["weight_map"]
        assert named.keys() == hf.llama().state_dict().keys()


@pytest.mark.clause("IDX-007", "IDX-008", "IDX-009")
@given(tensors=states(), size=file_sizes())
@example(tensors=[Tensor(torch.float32, (0,)), Tensor(torch.float32, (2,))], size=1)
def test_index_and_files_of_any_state_agree(impl, fresh_dir, tensors, size):
    directory, model = fresh_dir() / "model", holder(tensors)
    impl.save_consolidated(model, directory, max_shard_bytes=size)
    assert disagreements(directory) == NONE
    assert headers.index(directory)["weight_map"].keys() == model.state_dict().keys()


@pytest.mark.clause("IDX-008")
def test_file_of_another_cut_is_gone(impl, fresh_dir):
    directory = fresh_dir() / "model"
    for size in (9_000, SMALL_FILES, 10**9, SMALL_FILES):
        impl.save_consolidated(hf.llama(), directory, max_shard_bytes=size)
        assert disagreements(directory) == NONE


@pytest.mark.clause("IDX-009")
def test_total_size_is_what_save_pretrained_writes(impl, fresh_dir):
    model, directory, beside = hf.llama(), fresh_dir() / "model", fresh_dir()
    impl.save_consolidated(model, directory, max_shard_bytes=SMALL_FILES)
    model.save_pretrained(beside, max_shard_size=SMALL_FILES)
    written, expected = (json.loads((one / headers.INDEX).read_text())["metadata"] for one in (directory, beside))
    assert written["total_size"] == expected["total_size"]


def is_right(metadata):
    """Whether a header's metadata names the framework and holds strings only."""
    if not isinstance(metadata, dict) or metadata.get("format") != "pt":
        return False
    return all(isinstance(one, str) for pair in metadata.items() for one in pair)


@pytest.mark.clause("IDX-011")
@pytest.mark.parametrize("form", ["llama_tied", "parts"])
@pytest.mark.parametrize("world", [1, 2])
def test_header_of_every_weights_file_names_the_format(impl, fresh_dir, world, form):
    parent = fresh_dir()
    values(run_ranks(world, save_in_sizes, impl, parent, form, [SMALL_FILES], None, timeout=2 * SOON))
    found = {path: headers.metadata_of(path) for path in parent.rglob("*.safetensors")}
    assert len(found) > 1
    assert {str(path): metadata for path, metadata in found.items() if not is_right(metadata)} == {}


def save_adapter(rank, world, impl, kind, directory):
    spec = TRAINED[kind]
    model = spec.trained(impl.adapters)
    model = shard(model) if world > 1 else model
    impl.save_adapter(model, directory, spec.peft_config(impl.peft_config), **spec.save)


@pytest.mark.clause("ADP-024")
@pytest.mark.parametrize("kind", cases(["llama", "qwen3_moe_v4"]))
@pytest.mark.parametrize("world", [1, 2])
def test_header_of_the_adapter_names_the_format(impl, fresh_dir, kind, world):
    directory = fresh_dir() / "adapter"
    values(run_ranks(world, save_adapter, impl, kind, directory))
    assert is_right(headers.metadata_of(directory / WEIGHTS)), headers.metadata_of(directory / WEIGHTS)


def lacking(number, build=hf.llama):
    """The model without that one of its two layers."""
    model = build()
    text = model if build is hf.llama else model.model.language_model
    (text.model if build is hf.llama else text).layers[number] = None
    return model


def without_last():
    model = hf.llama()
    del model.model.layers[1]  # as a model whose config nobody corrected
    return model


def bert():
    model = bert_encoder()
    del model.encoder.layer[1]
    return model


def falcon():
    sizes = {"vocab_size": hf.VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = hf.build(transformers.FalconForCausalLM, transformers.FalconConfig, "tiny/falcon", sizes, 0)
    del model.transformer.h[1]
    return model


def gpt2():
    sizes = {"vocab_size": hf.VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    model = hf.build(transformers.GPT2LMHeadModel, transformers.GPT2Config, "tiny/gpt2", sizes, 0)
    del model.transformer.h[1]
    return model


def bart():
    sizes = {"vocab_size": hf.VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 40}
    sizes |= {"decoder_ffn_dim": 40, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    model = hf.build(transformers.BartForConditionalGeneration, transformers.BartConfig, "tiny/bart", sizes, 0)
    del model.model.decoder.layers[1]
    return model


def qwen2_vl(layers=1):
    """As published, its tower for images is as deep as the text model, and called ``visual``."""
    text = {"vocab_size": hf.VOCAB, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    text["rope_scaling"] = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    vision = {"depth": 3, "embed_dim": 32, "num_heads": 4, "hidden_size": 32, "patch_size": 4}
    sizes = {"text_config": text, "vision_config": vision}
    model = hf.build(
        transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLConfig, "tiny/qwen2-vl", sizes, 0
    )
    del model.model.language_model.layers[layers:]
    return model


def renamed():
    """A vision-language model whose outer config, of own code, has another name for the number of layers."""
    model = lacking(1, vision_language)
    kind = type(model.config)
    names = {**kind.attribute_map, "num_hidden_layers": "n_layer"}
    model.config.__class__ = type("OwnConfig", (kind,), {"attribute_map": names})
    return model


INCOMPLETE = {
    "of an encoder": bert,
    "counted under another name": gpt2,
    "of the decoder": bart,
    "beside a deep tower": qwen2_vl,
    "of a transformer": falcon,
    "first": lambda: lacking(0),
    "last": lambda: lacking(1),
    "cut short": without_last,
    "of the text model": lambda: lacking(1, vision_language),
    "of the text model alone under the usual name": renamed,
    "in a list": lambda: [lacking(0)],
    "in two parts": lambda: [
        stage(hf.llama(), [0], first=True, last=False),
        stage(hf.llama(), [0], first=False, last=True),
    ],
}


@pytest.mark.clause("IDX-010")
@pytest.mark.parametrize("which", list(INCOMPLETE))
def test_model_that_lacks_a_layer_is_refused(impl, fresh_dir, which):
    parent = fresh_dir()
    error = error_of(lambda: impl.save_consolidated(INCOMPLETE[which](), parent / "model"))
    assert "num_hidden_layers" in text_of(error)
    assert snapshot(parent) == {}


def save_without_a_stage(rank, world, impl, directory):
    part = stage(hf.llama(), [1], first=rank == 0, last=rank == 1)
    impl.save_consolidated([part], directory)


@pytest.mark.clause("IDX-010")
def test_stages_that_lack_a_layer_are_refused_on_every_rank(impl, fresh_dir):
    parent = fresh_dir()
    results = run_ranks(2, save_without_a_stage, impl, parent / "model", timeout=2 * SOON)
    assert all_failed(results), results
    assert all("num_hidden_layers" in result.error for result in results)
    assert snapshot(parent) == {}


def albert():
    """An AlbertModel, whose config counts four layers that are one group's weights."""
    settings = {
        "vocab_size": hf.VOCAB,
        "embedding_size": 16,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 48,
        "pad_token_id": 0,
    }
    return hf.build(transformers.AlbertModel, transformers.AlbertConfig, "tiny/albert", settings, 0)


def whole_beside_a_deep_tower():
    return qwen2_vl(layers=2)


def unequal():
    """An encoder of three layers, a decoder of one."""
    sizes = {"vocab_size": hf.VOCAB, "d_model": 32, "encoder_layers": 3, "decoder_layers": 1, "encoder_ffn_dim": 40}
    sizes |= {"decoder_ffn_dim": 40, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return hf.build(transformers.BartForConditionalGeneration, transformers.BartConfig, "tiny/bart", sizes, 0)


def only_the_head():
    model = nn.Linear(4, 4)
    model.config = hf.llama().config
    return model


def own_code():
    """Two layers, and a list of one block that the config does not count."""
    layers, blocks = (nn.ModuleList(nn.Linear(4, 4) for _ in range(number)) for number in (2, 1))
    model = nn.ModuleDict({"layers": layers, "neck": nn.ModuleDict({"blocks": blocks})})
    model.config = hf.llama().config
    return model


@pytest.mark.clause("IDX-010")
@pytest.mark.parametrize(
    "build", [albert, only_the_head, own_code, unequal, whole_beside_a_deep_tower], ids=lambda one: one.__name__
)
def test_layers_that_are_no_list_of_modules_are_not_missed(impl, fresh_dir, build):
    directory, model = fresh_dir() / "model", build()
    impl.save_consolidated(model, directory)
    # Tied tensors are saved once, and transformers publishes under names of its own.
    assert len(headers.index(directory)["weight_map"]) == len({t.data_ptr() for t in model.state_dict().values()})
