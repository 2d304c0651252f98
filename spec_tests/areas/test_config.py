# SPDX-License-Identifier: Apache-2.0
"""CFG: config.json (spec/config.md)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from hypothesis import example, given
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.code import remote_code_model
from spec_tests.builders.families import MODELS, WHOLE
from spec_tests.builders.odd_tensors import there
from spec_tests.builders.plain_models import dict_config_model
from spec_tests.builders.quantised import quantised_model
from spec_tests.harness.export import WRONG_VALUE, refusal, snapshot, stage_metadata, staged_json
from spec_tests.strategies.configs import ConfigSpec, Given, configs, same_json

families = pytest.mark.parametrize("family", WHOLE)


def settings(config):
    """What a config says, without the notes of who wrote it."""
    notes = ("_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype")
    return {key: value for key, value in config.to_dict().items() if key not in notes}


@pytest.mark.clause("CFG-001")
@families
def test_transformers_reads_what_the_live_config_says(impl, fresh_dir, family):
    model = MODELS[family].build()
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


@pytest.mark.clause("CFG-006")
@pytest.mark.parametrize("number", [np.int64(2**53 + 1), np.int8(4), np.uint16(0)], ids=repr)
def test_whole_number_of_numpy_is_written_as_one(impl, fresh_dir, number):
    model = hf.llama()
    model.config.a_number = number
    written = staged_json(impl, model, fresh_dir())["a_number"]
    assert (type(written), written) == (int, int(number))


@pytest.mark.clause("CFG-002")
@families
def test_model_type_and_architectures_are_in_the_file(impl, fresh_dir, family):
    model = MODELS[family].build()
    content = staged_json(impl, model, fresh_dir())
    assert content["model_type"] == model.config.model_type
    assert content["architectures"] == [type(model).__name__]


@pytest.mark.clause("CFG-002")
def test_remote_code_model_has_its_type_and_auto_map(impl, fresh_dir):
    model = remote_code_model(fresh_dir())
    content = staged_json(impl, model, fresh_dir())
    assert content["model_type"] == type(model.config).model_type
    assert sorted(content["auto_map"]) == ["AutoConfig", "AutoModelForCausalLM"]


@pytest.mark.clause("CFG-006")
@given(spec=configs())
@example(spec=ConfigSpec(extra={"setting": Given({2, 1}, [1, 2])}))
def test_values_are_written_in_their_plain_form(impl, fresh_dir, spec):
    model = nn.Linear(4, 4)
    model.config = spec.build()
    written = staged_json(impl, model, fresh_dir())
    assert same_json(spec.found_in(written), spec.expected())


@pytest.mark.clause("CFG-006")
@pytest.mark.parametrize("value", [object(), {"deep": [1, len]}, b"bytes"], ids=lambda one: type(one).__name__)
def test_value_without_a_json_form_is_refused_by_name(impl, fresh_dir, value):
    model, directory = hf.llama(), fresh_dir()
    model.config.odd_setting = value
    refusal(lambda: stage_metadata(impl, model, directory), directory, naming="odd_setting", kinds=WRONG_VALUE)


@pytest.mark.clause("CFG-007")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("said", [torch.float32, torch.bfloat16], ids=str)
def test_dtype_is_the_weights(impl, fresh_dir, dtype, said):
    model = hf.llama().to(dtype)
    model.config.dtype = said
    content = staged_json(impl, model, fresh_dir())
    named = {content[key] for key in ("dtype", "torch_dtype") if key in content}
    assert named == {str(dtype).removeprefix("torch.")}


@pytest.mark.clause("CFG-007")
@pytest.mark.needs("save_consolidated")
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_that_an_original_names_in_either_word_is_the_weights(impl, fresh_dir, key):
    original, directory = fresh_dir(), fresh_dir() / "model"
    content = {**hf.llama().config.to_dict(), key: "bfloat16"}
    content.pop("torch_dtype" if key == "dtype" else "dtype", None)
    (original / "config.json").write_text(json.dumps(content))
    impl.save_consolidated(hf.llama(), directory, v4_compatible=True, original_model_path=str(original))
    written = json.loads((directory / "config.json").read_text())
    assert {written[name] for name in ("dtype", "torch_dtype") if name in written} == {"float32"}


@pytest.mark.clause("CFG-012")
def test_dict_like_config_is_written_as_its_items(impl, fresh_dir):
    model = dict_config_model()
    content = {"_name_or_path": model.config["_name_or_path"], **staged_json(impl, model, fresh_dir())}
    assert content == json.loads(json.dumps(dict(model.config)))


@pytest.mark.clause("CFG-013")
def test_model_without_a_config_is_no_error(impl, fresh_dir):
    tree = snapshot(stage_metadata(impl, nn.Linear(4, 4), fresh_dir()))
    assert "config.json" not in tree
    assert "generation_config.json" not in tree


@pytest.mark.clause("CFG-014")
@families
def test_path_of_this_machine_is_not_in_the_file(impl, fresh_dir, family):
    model = MODELS[family].build()
    model.config._name_or_path = "/home/somebody/models/base"
    assert b"/home/somebody" not in (stage_metadata(impl, model, fresh_dir()) / "config.json").read_bytes()


@pytest.mark.clause("CFG-014")
def test_path_of_this_machine_is_not_in_the_file_of_a_quantised_model(impl, fresh_dir):
    model = quantised_model(torch.int8)
    model.config._name_or_path = "/home/somebody/models/base"
    assert b"/home/somebody" not in (stage_metadata(impl, model, fresh_dir()) / "config.json").read_bytes()


@pytest.mark.clause("CFG-018")
@pytest.mark.parametrize("said", [["LlamaForCausalLM"], [], None])
def test_architecture_is_the_class_that_is_saved(impl, fresh_dir, said):
    model = transformers.LlamaForSequenceClassification(hf.llama().config)
    model.config.architectures = said
    assert staged_json(impl, model, fresh_dir())["architectures"] == ["LlamaForSequenceClassification"]
    assert model.config.architectures == said


@pytest.mark.clause("CFG-020")
@pytest.mark.parametrize("dtype", there("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn_x2"), ids=str)
def test_dtype_of_quantised_tensors_is_not_the_models(impl, fresh_dir, dtype):
    model = quantised_model(dtype, method="fp8")
    model.more = nn.Parameter(torch.zeros(64, 64, dtype=torch.uint8).view(dtype), requires_grad=False)
    model.config.dtype = torch.bfloat16
    content = staged_json(impl, model, fresh_dir())
    assert {content[key] for key in ("dtype", "torch_dtype") if key in content} == {"bfloat16"}


@pytest.mark.clause("CFG-020")
def test_dtype_of_a_model_without_floating_point_tensors_is_what_its_config_says(impl, fresh_dir):
    model = nn.Module()
    model.register_buffer("packed", torch.zeros(4, 4, dtype=torch.uint8))
    model.config = hf.llama().config
    model.config.dtype = torch.bfloat16
    content = staged_json(impl, model, fresh_dir())
    assert {content[key] for key in ("dtype", "torch_dtype") if key in content} <= {"bfloat16"}


def lacking(content, expected, where=""):
    """The settings, sub-configs' included, that are not in the file as transformers would write them in full."""
    written_otherwise = ("_name_or_path", "architectures", "torch_dtype", "dtype", "transformers_version")
    for key, value in expected.items():
        if key in written_otherwise:
            continue
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            yield from lacking(content[key], value, f"{where}{key}.")
        elif key not in content or content[key] != value:
            yield where + key


@pytest.mark.clause("CFG-021")
@families
def test_settings_that_equal_the_defaults_are_in_the_file(impl, fresh_dir, family):
    model = MODELS[family].build()
    expected = json.loads(model.config.to_json_string(use_diff=False))
    assert list(lacking(staged_json(impl, model, fresh_dir()), expected)) == []
