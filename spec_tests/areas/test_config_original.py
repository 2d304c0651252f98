# SPDX-License-Identifier: Apache-2.0
"""CFG: the files of the original model, for transformers 4 (spec/config.md)."""

from __future__ import annotations

import json
import math

import pytest
import transformers

from spec_tests.builders import hf
from spec_tests.builders.families import MODELS, WHOLE
from spec_tests.builders.originals import ORIGINAL, original
from spec_tests.harness.export import error_of, refusal, snapshot, spelled, stage_metadata, staged_json, text_of


@pytest.mark.clause("CFG-008")
def test_v4_config_is_the_original_and_the_live_one_stands_beside_it(impl, fresh_dir):
    model, path = hf.llama(), original(fresh_dir())
    directory = stage_metadata(impl, model, fresh_dir(), v4_compatible=True, original_model_path=path)
    content = json.loads((directory / "config.json").read_text())
    assert content == {key: value for key, value in ORIGINAL.items() if key != "quantization_config"}
    assert json.loads((directory / "config.v5.json").read_text()) == staged_json(impl, model, fresh_dir())


@pytest.mark.clause("CFG-009")
@pytest.mark.parametrize("path", [None, "org/model", "an empty directory"])
def test_v4_without_a_local_original_is_refused(impl, fresh_dir, path):
    path = str(fresh_dir()) if path == "an empty directory" else path
    directory = fresh_dir()
    named = [spelled(impl, "ConsolidatedHFAddon.pre_save", name) for name in ("v4_compatible", "original_model_path")]
    save = {"v4_compatible": True, "original_model_path": path}
    refusal(lambda: stage_metadata(impl, hf.llama(), directory, **save), directory, naming=named, kinds=Exception)


@pytest.mark.clause("CFG-010")
def test_config_exists_only_in_local_directories(impl, fresh_dir):
    exists, path = impl.helpers["_config_exists"], original(fresh_dir())
    assert exists(path, "config.json") is True
    assert exists(path, "generation_config.json") is False
    assert exists(None, "config.json") is False
    assert exists("org/model", "config.json") is False


@pytest.mark.clause("CFG-011")
def test_original_file_is_written_without_quantisation(impl, fresh_dir):
    path, directory = original(fresh_dir()), fresh_dir()
    impl.helpers["_save_original_config_json"](path, str(directory), "config.json")
    content = json.loads((directory / "config.json").read_text())
    assert content == {key: value for key, value in ORIGINAL.items() if key != "quantization_config"}


def saved_by_transformers(model, use_diff=True):
    """The live config as transformers writes it: what differs from the defaults, or everything."""
    return {**json.loads(model.config.to_json_string(use_diff=use_diff)), "architectures": [type(model).__name__]}


def value(content, name):
    """The setting with the dotted name; of labels only how many there are."""
    for key in name.split("."):
        content = content[key] if isinstance(content, dict) else getattr(content, key)
    return len(content) if name == "id2label" else content


def check_agrees_or_is_refused(impl, directory, model, content, name):
    """The saved config.json has the live value of the setting, or nothing is saved and the error has both values."""
    said = value(content, name)
    live = [type(model).__name__] if name == "architectures" else value(model.config, name)
    assert said != live
    save = {"v4_compatible": True, "original_model_path": original(directory / "original", config=content)}
    (directory / "saved").mkdir()
    error = error_of(lambda: stage_metadata(impl, model, directory / "saved", **save))
    if error is None:
        assert value(json.loads((directory / "saved" / "config.json").read_text()), name) == live
    else:
        # The name may be the original's or the one that has taken its place since.
        word = {"id2label": "label", "num_experts": "experts"}.get(name, name.rpartition(".")[2])
        assert all(part in text_of(error) for part in (word, str(said), str(live))), error
        assert snapshot(directory / "saved") == {}


# Settings that tensors depend on, under the names that their classes have for them.
SHAPES = {
    "llama": (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ),
    "qwen3_moe": ("num_experts", "moe_intermediate_size", "intermediate_size"),
    "t5": ("d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads"),
    "bert_masked_lm": ("vocab_size", "intermediate_size"),
    "vlm": ("text_config.vocab_size", "text_config.num_hidden_layers", "vision_config.intermediate_size"),
}


@pytest.mark.clause("CFG-017")
@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in SHAPES.items() for name in names])
def test_original_of_another_shape_is_not_passed_on(impl, fresh_dir, family, name):
    model = MODELS[family].build()
    content = saved_by_transformers(model, use_diff=False)
    content.pop("num_local_experts", None)  # what transformers 5 calls num_experts
    *above, last = name.split(".")
    inner = content[above[0]] if above else content
    # By two, so that sizes stay divisible by the number of heads.
    inner[last] = value(model.config, name) * 2
    check_agrees_or_is_refused(impl, fresh_dir(), model, content, name)


@pytest.mark.clause("CFG-017")
@pytest.mark.parametrize("name", ["n_layer", "n_head", "n_embd", "n_inner"])
def test_shape_in_the_words_of_older_families_is_not_passed_on(impl, fresh_dir, name):
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_inner": 48, "vocab_size": 64, "n_positions": 16}
    model = hf.build(transformers.GPT2LMHeadModel, transformers.GPT2Config, "tiny/gpt2", sizes, 0)
    content = {**saved_by_transformers(model, use_diff=False), name: 2 * sizes[name]}
    check_agrees_or_is_refused(impl, fresh_dir(), model, content, name)


@pytest.mark.clause("CFG-017")
@pytest.mark.parametrize(("family", "name"), [("llama", "vocab_size"), ("vlm", "text_config.vocab_size")])
def test_vocabulary_that_grew_in_training_is_not_lost(impl, fresh_dir, family, name):
    model = MODELS[family].build()
    content = saved_by_transformers(model)
    model.resize_token_embeddings(72)
    check_agrees_or_is_refused(impl, fresh_dir(), model, content, name)


@pytest.mark.clause("CFG-017")
@pytest.mark.parametrize("labels", [2, 4])
def test_labels_of_the_original_are_not_passed_on(impl, fresh_dir, labels):
    model = MODELS["bert_classifier"].build()
    content = saved_by_transformers(MODELS["bert_classifier"].build(num_labels=labels), use_diff=False)
    content["id2label"] = {str(number): f"LABEL_{number}" for number in range(labels)}
    content["label2id"] = {f"LABEL_{number}": number for number in range(labels)}
    check_agrees_or_is_refused(impl, fresh_dir(), model, content, "id2label")


@pytest.mark.clause("CFG-017")
def test_class_of_the_original_is_not_passed_on(impl, fresh_dir):
    base = hf.llama()
    model = transformers.LlamaForSequenceClassification(base.config)
    check_agrees_or_is_refused(impl, fresh_dir(), model, saved_by_transformers(base), "architectures")


# As transformers 4.57.6 writes them, and older versions, which left out what a sub-config had by default.
OF_VERSION_4 = {
    "llama": {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float32", "pretraining_tp": 1},
    "qwen3_moe": {"num_experts": 4, "rope_theta": 10000.0, "decoder_sparse_step": 1, "head_dim": 8},
    "vlm": {"image_token_index": 5, "text_config": {**hf.SIZES, "model_type": "llama", "rope_theta": 10000.0}},
    "bert_classifier": {"id2label": {"0": "bad", "1": "fair", "2": "good"}, "position_embedding_type": "absolute"},
}


@pytest.mark.clause("CFG-017")
@pytest.mark.parametrize("family", WHOLE)
def test_same_shape_in_other_words_is_the_original_as_it_is(impl, fresh_dir, family):
    model = MODELS[family].build()
    content = saved_by_transformers(model)
    for renamed in ("rope_parameters", "num_local_experts", "dtype", "id2label", "label2id"):
        content.pop(renamed, None)
    content |= OF_VERSION_4.get(family, {})
    if "vision_config" in content:
        content["vision_config"]["tie_word_embeddings"] = True  # version 4 says it there too, where no words are
    save = {"v4_compatible": True, "original_model_path": original(fresh_dir(), config=content)}
    assert staged_json(impl, model, fresh_dir(), **save) == content


# What config classes of transformers 5 write into the dicts that they are made from.
LEFT_OPEN = {
    "llama": {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "vlm": {"text_config": {**hf.SIZES, "rope_theta": 10000.0}},
}


@pytest.mark.clause("CFG-008")
@pytest.mark.parametrize("family", LEFT_OPEN)
def test_what_the_original_leaves_open_stays_open(impl, fresh_dir, family):
    model = MODELS[family].build()
    content = {**saved_by_transformers(model), **LEFT_OPEN[family]}
    content.pop("rope_parameters", None)
    save = {"v4_compatible": True, "original_model_path": original(fresh_dir(), config=content)}
    assert staged_json(impl, model, fresh_dir(), **save) == content


@pytest.mark.clause("CFG-008")
def test_infinite_number_of_the_original_stays(impl, fresh_dir):
    content = {**ORIGINAL, "time_step_limit": [0.0, math.inf]}  # as transformers 4 writes Mamba 2's
    save = {"v4_compatible": True, "original_model_path": original(fresh_dir(), config=content)}
    del content["quantization_config"]
    assert staged_json(impl, hf.llama(), fresh_dir(), **save) == content


@pytest.mark.clause("CFG-023")
def test_original_with_a_byte_order_mark_is_read(impl, fresh_dir):
    source = fresh_dir()
    text = json.dumps(ORIGINAL)
    (source / "config.json").write_text(text, encoding="utf-8-sig")
    save = {"v4_compatible": True, "original_model_path": str(source)}
    content = staged_json(impl, hf.llama(), fresh_dir(), **save)
    assert content["model_type"] == ORIGINAL["model_type"]


@pytest.mark.clause("CFG-023")
@pytest.mark.parametrize("text", ['{"model_type": ', "[]", "", "\x00"], ids=["cut off", "a list", "empty", "binary"])
def test_original_that_is_no_json_is_named(impl, fresh_dir, text):
    source, directory = fresh_dir(), fresh_dir()
    (source / "config.json").write_text(text)
    save = {"v4_compatible": True, "original_model_path": str(source)}
    named = str(source / "config.json")
    refusal(lambda: stage_metadata(impl, hf.llama(), directory, **save), directory, naming=named, kinds=Exception)
