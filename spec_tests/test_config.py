# SPDX-License-Identifier: Apache-2.0
"""CFG and GEN: config.json and generation_config.json (spec/config.md, spec/generation.md)."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers
from hypothesis import given
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.code import remote_code_model
from spec_tests.builders.families import CONSOLIDATED
from spec_tests.builders.odd_models import dict_config_model, generation_only_model, quantised_model
from spec_tests.harness.export import error_of, snapshot, stage_metadata, text_of
from spec_tests.strategies.configs import configs, same_json

KEYS = ("quantization_config", "compression_config")
DTYPES = {
    torch.uint8: True,
    torch.int8: True,
    torch.bfloat16: False,
    torch.float16: False,
    torch.float32: False,
    torch.bool: False,
    torch.int64: False,
}
NARROW = {torch.float8_e4m3fn: True, torch.float8_e5m2: True, torch.float8_e8m0fnu: True, **DTYPES}
families = pytest.mark.parametrize("family", list(CONSOLIDATED))


def staged(impl, model, directory, name="config.json", **save):
    return json.loads((stage_metadata(impl, model, directory, **save) / name).read_text(encoding="utf-8"))


def settings(config):
    """What a config says, without the notes of who wrote it."""
    notes = ("_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype")
    return {key: value for key, value in config.to_dict().items() if key not in notes}


def quantisation_at_any_depth(content):
    if not isinstance(content, dict):
        return []
    return [key for key in KEYS if key in content] + [
        key for value in content.values() for key in quantisation_at_any_depth(value)
    ]


@pytest.mark.clause("CFG-001")
@families
def test_transformers_reads_what_the_live_config_says(impl, fresh_dir, family):
    model = CONSOLIDATED[family].build()
    directory = stage_metadata(impl, model, fresh_dir())
    read = transformers.AutoConfig.from_pretrained(directory)
    assert type(read) is type(model.config)
    assert settings(read) == settings(model.config)


@pytest.mark.clause("CFG-001")
def test_change_made_in_training_is_in_the_file(impl, fresh_dir):
    model = hf.llama()
    model.resize_token_embeddings(72)
    model.config.rope_note = "scaled"
    read = transformers.AutoConfig.from_pretrained(stage_metadata(impl, model, fresh_dir()))
    assert (read.vocab_size, read.rope_note) == (72, "scaled")


@pytest.mark.clause("CFG-002")
@families
def test_model_type_and_architectures_are_in_the_file(impl, fresh_dir, family):
    model = CONSOLIDATED[family].build()
    content = staged(impl, model, fresh_dir())
    assert content["model_type"] == model.config.model_type
    assert content["architectures"] == [type(model).__name__]


@pytest.mark.clause("CFG-002")
def test_remote_code_model_has_its_type_and_auto_map(impl, fresh_dir):
    model = remote_code_model(fresh_dir())
    content = staged(impl, model, fresh_dir())
    assert content["model_type"] == type(model.config).model_type
    assert sorted(content["auto_map"]) == ["AutoConfig", "AutoModelForCausalLM"]


@pytest.mark.clause("CFG-003")
@pytest.mark.parametrize(("dtype", "quantised"), list(DTYPES.items()), ids=str)
def test_quantization_config_stands_with_quantised_parameters(impl, fresh_dir, dtype, quantised):
    content = staged(impl, quantised_model(dtype), fresh_dir())
    assert ("quantization_config" in content) is quantised


@pytest.mark.clause("CFG-004")
@pytest.mark.parametrize(("dtype", "quantised"), [(torch.uint8, True), (torch.bfloat16, False)], ids=str)
def test_helper_strips_the_live_config(impl, dtype, quantised):
    model = quantised_model(dtype)
    impl.helpers["_maybe_strip_quantization_config"](model)
    assert hasattr(model.config, "quantization_config") is quantised


@pytest.mark.clause("CFG-004")
@pytest.mark.parametrize("place", ["top", "nested", "dict"])
def test_hook_leaves_the_live_config_as_it_is(impl, fresh_dir, place):
    model = quantised_model(torch.bfloat16, config=place)
    before = copy.deepcopy(model.config)
    stage_metadata(impl, model, fresh_dir())
    as_dict = dict if place == "dict" else lambda config: config.to_dict()
    assert as_dict(model.config) == as_dict(before)
    assert quantisation_at_any_depth(as_dict(model.config))


@pytest.mark.clause("CFG-005")
@pytest.mark.parametrize("place", ["top", "nested", "dict"])
@pytest.mark.parametrize("where", ["parameter", "buffer", "non_persistent_buffer"])
@pytest.mark.parametrize(("dtype", "quantised"), list(NARROW.items()), ids=str)
def test_quantization_config_stands_exactly_with_quantised_tensors(impl, fresh_dir, dtype, quantised, where, place):
    content = staged(impl, quantised_model(dtype, where, place), fresh_dir())
    assert bool(quantisation_at_any_depth(content)) is (quantised and where != "non_persistent_buffer")


@pytest.mark.clause("CFG-005")
@pytest.mark.parametrize("place", ["top", "nested", "dict"])
def test_helper_strips_at_every_depth(impl, place):
    model = quantised_model(torch.bfloat16, config=place)
    impl.helpers["_maybe_strip_quantization_config"](model)
    config = dict(model.config) if place == "dict" else model.config.to_dict()
    assert quantisation_at_any_depth(config) == []


@pytest.mark.clause("CFG-006")
@given(spec=configs())
def test_values_are_written_in_their_plain_form(impl, fresh_dir, spec):
    model = nn.Linear(4, 4)
    model.config = spec.build()
    written = staged(impl, model, fresh_dir())
    assert same_json(spec.found_in(written), spec.expected())


@pytest.mark.clause("CFG-006")
@pytest.mark.parametrize("value", [object(), {"deep": [1, len]}, b"bytes"], ids=lambda one: type(one).__name__)
def test_value_without_a_json_form_is_refused_by_name(impl, fresh_dir, value):
    model, directory = hf.llama(), fresh_dir()
    model.config.odd_setting = value
    error = error_of(lambda: stage_metadata(impl, model, directory))
    assert isinstance(error, (TypeError, ValueError)), error
    assert "odd_setting" in text_of(error)
    assert snapshot(directory) == {}


@pytest.mark.clause("CFG-007")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("said", [torch.float32, torch.bfloat16], ids=str)
def test_dtype_is_the_weights(impl, fresh_dir, dtype, said):
    model = hf.llama().to(dtype)
    model.config.dtype = said
    content = staged(impl, model, fresh_dir())
    named = {content[key] for key in ("dtype", "torch_dtype") if key in content}
    assert named == {str(dtype).removeprefix("torch.")}


ORIGINAL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rope_theta": 500000.0,
    "torch_dtype": "float32",
    "quantization_config": {"quant_method": "mxfp4"},
    "an_old_setting": [1, {"deep": None}],
}


def original(directory, **files):
    for name, content in {"config": ORIGINAL, **files}.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return str(directory)


@pytest.mark.clause("CFG-008")
def test_v4_config_is_the_original_and_the_live_one_stands_beside_it(impl, fresh_dir):
    model, path = hf.llama(), original(fresh_dir())
    directory = stage_metadata(impl, model, fresh_dir(), v4_compatible=True, original_model_path=path)
    content = json.loads((directory / "config.json").read_text())
    assert content == {key: value for key, value in ORIGINAL.items() if key != "quantization_config"}
    assert json.loads((directory / "config.v5.json").read_text()) == staged(impl, model, fresh_dir())


@pytest.mark.clause("CFG-009")
@pytest.mark.parametrize("path", [None, "org/model", "an empty directory"])
def test_v4_without_a_local_original_is_refused(impl, fresh_dir, path):
    path = str(fresh_dir()) if path == "an empty directory" else path
    directory = fresh_dir()
    error = error_of(lambda: stage_metadata(impl, hf.llama(), directory, v4_compatible=True, original_model_path=path))
    assert error is not None
    assert "v4_compatible" in text_of(error)
    assert "original_model_path" in text_of(error)
    assert snapshot(directory) == {}


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


@pytest.mark.clause("CFG-012")
def test_dict_like_config_is_written_as_its_items(impl, fresh_dir):
    model = dict_config_model()
    content = staged(impl, model, fresh_dir())
    expected = {key: value for key, value in model.config.items() if key != "_name_or_path"}
    assert content == json.loads(json.dumps(expected))


@pytest.mark.clause("CFG-013")
def test_model_without_a_config_is_no_error(impl, fresh_dir):
    tree = snapshot(stage_metadata(impl, nn.Linear(4, 4), fresh_dir()))
    assert "config.json" not in tree
    assert "generation_config.json" not in tree


@pytest.mark.clause("CFG-014")
@families
def test_path_of_this_machine_is_not_in_the_file(impl, fresh_dir, family):
    model = CONSOLIDATED[family].build()
    model.config._name_or_path = "/home/somebody/models/base"
    assert b"/home/somebody" not in (stage_metadata(impl, model, fresh_dir()) / "config.json").read_bytes()


@pytest.mark.clause("GEN-001")
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_generation_settings_are_read_back(impl, fresh_dir, family):
    model = CONSOLIDATED[family].build()
    model.generation_config.update(max_new_tokens=17, do_sample=True, temperature=0.7, eos_token_id=[2, 3])
    read = transformers.GenerationConfig.from_pretrained(stage_metadata(impl, model, fresh_dir()))
    for name in ("max_new_tokens", "do_sample", "temperature", "eos_token_id", "bos_token_id", "pad_token_id"):
        assert getattr(read, name) == getattr(model.generation_config, name), name


@pytest.mark.clause("GEN-002")
def test_settings_that_transformers_refuses_are_written(impl, fresh_dir):
    model = hf.llama()
    model.generation_config = transformers.GenerationConfig(temperature=0.6, top_p=0.9)
    assert error_of(lambda: model.generation_config.save_pretrained(fresh_dir())) is not None
    content = staged(impl, model, fresh_dir(), "generation_config.json")
    assert (content["temperature"], content["top_p"]) == (0.6, 0.9)


@pytest.mark.clause("GEN-003")
def test_v4_generation_config_is_the_original(impl, fresh_dir):
    old = {"max_new_tokens": 5, "transformers_version": "4.30.0"}
    model, path = hf.llama(), original(fresh_dir(), generation_config=old)
    directory = stage_metadata(impl, model, fresh_dir(), v4_compatible=True, original_model_path=path)
    assert json.loads((directory / "generation_config.json").read_text()) == old
    live = json.loads((directory / "generation_config.v5.json").read_text())
    assert live == staged(impl, model, fresh_dir(), "generation_config.json")


@pytest.mark.clause("GEN-004")
def test_generation_config_stands_on_its_own(impl, fresh_dir):
    tree = snapshot(stage_metadata(impl, generation_only_model(), fresh_dir()))
    assert "config.json" not in tree
    assert json.loads(tree["generation_config.json"])["max_new_tokens"] == 7
    model = hf.llama()
    model.generation_config = None
    tree = snapshot(stage_metadata(impl, model, fresh_dir()))
    assert "config.json" in tree
    assert "generation_config.json" not in tree
