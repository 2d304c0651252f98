# SPDX-License-Identifier: Apache-2.0
"""GEN: generation_config.json (spec/generation.md)."""

from __future__ import annotations

import json
import warnings

import pytest
import transformers

from spec_tests.builders import hf
from spec_tests.builders.families import MODELS
from spec_tests.builders.originals import original
from spec_tests.builders.plain_models import generation_only_model
from spec_tests.builders.tokenizers import tokenizer
from spec_tests.harness.export import error_of, snapshot, stage_metadata, staged_json


@pytest.mark.clause("GEN-001")
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_generation_settings_are_read_back(impl, fresh_dir, family):
    model = MODELS[family].build()
    model.generation_config.update(max_new_tokens=17, do_sample=True, temperature=0.7, eos_token_id=[2, 3])
    read = transformers.GenerationConfig.from_pretrained(stage_metadata(impl, model, fresh_dir()))
    for name in ("max_new_tokens", "do_sample", "temperature", "eos_token_id", "bos_token_id", "pad_token_id"):
        assert getattr(read, name) == getattr(model.generation_config, name), name


@pytest.mark.clause("GEN-002")
def test_settings_that_transformers_refuses_are_written(impl, fresh_dir):
    model = hf.llama()
    model.generation_config = transformers.GenerationConfig(temperature=0.6, top_p=0.9)
    assert error_of(lambda: model.generation_config.save_pretrained(fresh_dir())) is not None
    content = staged_json(impl, model, fresh_dir(), "generation_config.json")
    assert (content["temperature"], content["top_p"]) == (0.6, 0.9)


@pytest.mark.clause("GEN-003")
def test_v4_generation_config_is_the_original(impl, fresh_dir):
    old = {"max_new_tokens": 5, "transformers_version": "4.30.0"}
    model, path = hf.llama(), original(fresh_dir(), generation_config=old)
    directory = stage_metadata(impl, model, fresh_dir(), v4_compatible=True, original_model_path=path)
    assert json.loads((directory / "generation_config.json").read_text()) == old
    live = json.loads((directory / "generation_config.v5.json").read_text())
    assert live == staged_json(impl, model, fresh_dir(), "generation_config.json")


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


@pytest.mark.clause("GEN-005")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize(
    ("said", "warned"), [(2, False), ([0, 2], False), (1, True), ([0, 1], True), (None, False)], ids=str
)
def test_end_of_text_that_generation_does_not_know_is_warned_of(impl, fresh_dir, said, warned):
    model = hf.llama()
    model.generation_config.eos_token_id = said
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stage_metadata(impl, model, fresh_dir(), tokenizer=tokenizer())
    assert bool([one for one in caught if "eos_token_id" in str(one.message)]) is warned


@pytest.mark.clause("GEN-005")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize(("said", "warned"), [(2, True), (0, False), ([0, 2], False)], ids=str)
def test_end_of_text_may_be_token_zero(impl, fresh_dir, said, warned):
    model, tokens = hf.llama(), tokenizer()
    tokens.eos_token = "<pad>"
    assert tokens.eos_token_id == 0
    model.generation_config.eos_token_id = said
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stage_metadata(impl, model, fresh_dir(), tokenizer=tokens)
    assert bool([one for one in caught if "eos_token_id" in str(one.message)]) is warned
