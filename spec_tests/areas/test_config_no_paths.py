# SPDX-License-Identifier: Apache-2.0
"""CFG-019: nothing that is written tells where it was written (spec/config.md)."""

from __future__ import annotations

import json

import pytest
import transformers

from spec_tests.builders import hf
from spec_tests.builders.code import remote_code_model
from spec_tests.builders.families import MODELS
from spec_tests.builders.tokenizers import tokenizer
from spec_tests.harness.export import save_metadata, stage_metadata
from spec_tests.strategies.trees import Leaf, TreeSpec

SECRET = "home-of-somebody"


def told(directory):
    """The text files below ``directory`` that have the word, with what stands around it."""
    found = {}
    for path in sorted(directory.rglob("*")):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if SECRET in text:
            found[path.name] = text[max(0, text.index(SECRET) - 60) :][:200]
    return found


def original_of(directory, family):
    """A model saved below a directory with the word in its path, with tokenizer and generation settings."""
    path = directory / SECRET / "model"
    model = remote_code_model(path) if family == "remote code" else MODELS[family].build()
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    content = json.loads((path / "config.json").read_text())
    # As transformers 4 wrote it, into sub-configs as well.
    for one in (content, content.get("text_config", {}), content.get("vision_config", {})):
        one["_name_or_path"] = str(path)
    (path / "config.json").write_text(json.dumps(content))
    return path


def loaded(path, family):
    """Model and tokenizer as a trainer loads them from there."""
    auto = getattr(transformers, MODELS[family].auto_class if family in MODELS else "AutoModelForCausalLM")
    model = auto.from_pretrained(path, trust_remote_code=True)
    assert SECRET in model.config._name_or_path
    for inner in ("text_config", "vision_config"):
        if hasattr(model.config, inner):
            getattr(model.config, inner)._name_or_path = str(path)
    return model, transformers.AutoTokenizer.from_pretrained(path)


@pytest.mark.clause("CFG-019")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize("v4_compatible", [False, True])
@pytest.mark.parametrize("family", ["llama", "vlm", "t5", "remote code"])
def test_whole_model_tells_no_path(impl, fresh_dir, family, v4_compatible):
    path = original_of(fresh_dir(), family)
    model, own_tokenizer = loaded(path, family)
    save = {"tokenizer": own_tokenizer, "original_model_path": str(path), "v4_compatible": v4_compatible}
    saved = stage_metadata(impl, model, fresh_dir(), **save)
    assert (saved / "tokenizer_config.json").exists()
    assert told(saved) == {}


@pytest.mark.clause("CFG-019")
@pytest.mark.parametrize("v4_compatible", [False, True])
def test_adapter_tells_the_name_of_its_base_alone(impl, fresh_dir, v4_compatible):
    path = original_of(fresh_dir(), "llama")
    model, own_tokenizer = loaded(path, "llama")
    trained = TreeSpec((Leaf("model.layers.0.q_proj"),)).build()
    trained.config = model.config
    save = {"tokenizer": own_tokenizer, "original_model_path": str(path), "v4_compatible": v4_compatible}
    saved = save_metadata(impl, trained, fresh_dir(), **save)
    assert set(told(saved.directory)) <= {"adapter_config.json"}
    rest = {key: value for key, value in saved.config.items() if key != "base_model_name_or_path"}
    assert SECRET not in json.dumps(rest)


@pytest.mark.clause("CFG-019")
@pytest.mark.needs("_save_original_config_json")
def test_helper_tells_no_path(impl, fresh_dir):
    path, directory = original_of(fresh_dir(), "llama"), fresh_dir()
    impl.helpers["_save_original_config_json"](str(path), str(directory), "config.json")
    assert told(directory) == {}
    assert json.loads((directory / "config.json").read_text())["vocab_size"] == hf.VOCAB
