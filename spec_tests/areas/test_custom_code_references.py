# SPDX-License-Identifier: Apache-2.0
"""CODE: what auto_map refers to (spec/custom_code.md)."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from pathlib import Path

import pytest
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from spec_tests.builders import hf
from spec_tests.builders.code import remote_code_model
from spec_tests.harness.export import save_metadata, snapshot, stage_metadata
from spec_tests.strategies.trees import Leaf, TreeSpec

TREE = TreeSpec((Leaf("model.layers.0.q_proj"),))
REPO = "org/some-repo.v2--"


class RemoteTokenizer(transformers.PreTrainedTokenizerFast):
    """A tokenizer with code of its own: what matters here is its settings."""

    def __init__(self, auto_map):
        super().__init__(tokenizer_object=Tokenizer(models.WordLevel({"w": 0})))
        self.auto_map = auto_map

    def save_pretrained(self, directory):
        content = {"auto_map": self.auto_map, "tokenizer_class": "RemoteTokenizer", "unk_token": "Ω"}
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps(content))


def folder(directory, names):
    """A model folder with these modules; each imports the next one."""
    (directory / "config.json").write_text("{}")
    for name, following in zip(names, [*names[1:], None], strict=True):
        line = f"from .{following} import something" if following else "something = 1"
        (directory / f"{name}.py").write_text(f"{line}\n")
    return str(directory)


def maps_written(impl, directory, auto_map, original):
    """The auto_map in config.json, config.v5.json (if any) and both tokenizer_config.json."""
    model = hf.llama()
    model.config.auto_map = copy.deepcopy(auto_map)
    save = {"tokenizer": RemoteTokenizer(auto_map), "original_model_path": original}
    for name in ("model", "adapter"):
        (directory / name).mkdir()
    stage_metadata(impl, model, directory / "model", **save)
    save_metadata(impl, TREE.build(), directory / "adapter", **save)
    assert model.config.auto_map == auto_map
    files = ("model/config.json", "model/tokenizer_config.json", "adapter/tokenizer_config.json")
    return [json.loads((directory / name).read_text(encoding="utf-8"))["auto_map"] for name in files]


modules = st.from_regex(r"m_[a-z0-9]{1,5}", fullmatch=True)


@pytest.mark.clause("CODE-006")
@pytest.mark.needs("consolidated")
@given(names=st.lists(modules, min_size=2, max_size=4, unique=True), local=st.booleans())
@example(names=["m_here", "m_there"], local=False)
def test_reference_is_local_when_its_code_travels(impl, fresh_dir, names, local):
    here, elsewhere = names[:-1], names[-1]
    prefix = "" if local else REPO
    auto_map = {
        "AutoConfig": f"{prefix}{here[0]}.Config",
        "AutoModel": f"{REPO}{elsewhere}.Model",
        "AutoTokenizer": [None, f"{prefix}{here[-1]}.Tokenizer"],
        "AutoProcessor": [f"{REPO}{elsewhere}.Slow", f"{prefix}{here[0]}.Fast"],
    }
    expected = {
        "AutoConfig": f"{here[0]}.Config",
        "AutoModel": f"{REPO}{elsewhere}.Model",
        "AutoTokenizer": [None, f"{here[-1]}.Tokenizer"],
        "AutoProcessor": [f"{REPO}{elsewhere}.Slow", f"{here[0]}.Fast"],
    }
    written = maps_written(impl, fresh_dir(), auto_map, folder(fresh_dir(), here))
    assert written == [expected] * 3


@pytest.mark.clause("CODE-006")
@pytest.mark.needs("consolidated")
def test_reference_that_becomes_much_shorter_leaves_a_whole_file(impl, fresh_dir):
    auto_map = {"AutoModel": f"org/{'long' * 100}--m_here.Model"}
    path = folder(fresh_dir(), ["m_here"])
    assert maps_written(impl, fresh_dir(), auto_map, path) == [{"AutoModel": "m_here.Model"}] * 3


@pytest.mark.clause("CODE-006")
@pytest.mark.needs("consolidated")
@pytest.mark.parametrize("path", [None, "org/some-repo.v2", "a folder without the code", "a folder without an import"])
def test_reference_to_the_hub_stays_when_no_code_travels(impl, fresh_dir, path):
    auto_map = {"AutoModel": f"{REPO}modeling_x.Model", "AutoTokenizer": [f"{REPO}tokenization_x.Tokenizer", None]}
    if path is not None and path.startswith("a folder"):
        names = ["modeling_x", "layers_x"] if path.endswith("import") else ["another"]
        directory = fresh_dir()
        path = folder(directory, names)
        (directory / "layers_x.py").unlink(missing_ok=True)
    assert maps_written(impl, fresh_dir(), auto_map, path) == [auto_map] * 3


@pytest.mark.clause("CODE-006")
@pytest.mark.needs("consolidated")
def test_live_form_beside_the_original_is_local_too(impl, fresh_dir):
    model = hf.llama()
    model.config.auto_map = {"AutoModel": f"{REPO}modeling_x.Model"}
    path = folder(fresh_dir(), ["modeling_x"])
    content = json.loads(model.config.to_json_string(use_diff=False))
    (Path(path) / "config.json").write_text(json.dumps(content))
    saved = stage_metadata(impl, model, fresh_dir(), v4_compatible=True, original_model_path=path)
    for name in ("config.json", "config.v5.json"):
        assert json.loads((saved / name).read_text())["auto_map"] == {"AutoModel": "modeling_x.Model"}


@pytest.mark.clause("CODE-006")
@pytest.mark.needs("consolidated")
def test_config_of_a_hub_model_loads_without_the_hub(impl, fresh_dir):
    original = fresh_dir()
    model = remote_code_model(original)
    model.config.auto_map = {auto: f"{REPO}{reference}" for auto, reference in model.config.auto_map.items()}
    saved = stage_metadata(impl, model, fresh_dir(), original_model_path=str(original))
    read = transformers.AutoConfig.from_pretrained(saved, trust_remote_code=True, local_files_only=True)
    assert type(read).__name__ == type(model.config).__name__


@pytest.mark.clause("CODE-006")
def test_settings_beside_the_reference_stay(impl, fresh_dir):
    auto_map = {"AutoTokenizer": [f"{REPO}tokenization_x.Tokenizer", None]}
    save = {"tokenizer": RemoteTokenizer(auto_map), "original_model_path": folder(fresh_dir(), ["tokenization_x"])}
    written = save_metadata(impl, TREE.build(), fresh_dir(), **save).directory / "tokenizer_config.json"
    content = json.loads(written.read_text(encoding="utf-8"))
    assert (content["tokenizer_class"], content["unk_token"]) == ("RemoteTokenizer", "Ω")


@pytest.mark.clause("CODE-007")
@pytest.mark.parametrize("missing", ["modeling_x", "layers_x"])
@pytest.mark.parametrize("given_original", [True, False])
def test_missing_code_is_named_and_stops_nothing(impl, fresh_dir, caplog, missing, given_original):
    model, original = hf.llama(), fresh_dir()
    model.config.auto_map = {"AutoModel": "modeling_x.Model"}
    folder(original, ["modeling_x", "layers_x"])
    (original / f"{missing}.py").unlink()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        saved = stage_metadata(impl, model, fresh_dir(), original_model_path=str(original) if given_original else None)
    said = [str(one.message) for one in caught] + caplog.messages
    assert any((missing if given_original else "modeling_x") + ".py" in text for text in said), said
    assert json.loads((saved / "config.json").read_text())["auto_map"] == model.config.auto_map


@pytest.mark.clause("CODE-007")
@pytest.mark.parametrize("auto_map", [{"AutoModel": "modeling_x.Model"}, {"AutoModel": f"{REPO}absent.Model"}, None])
def test_nothing_is_said_when_the_code_is_there_or_on_the_hub(impl, fresh_dir, caplog, auto_map):
    model = hf.llama()
    if auto_map:
        model.config.auto_map = auto_map
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        saved = stage_metadata(
            impl, model, fresh_dir(), original_model_path=folder(fresh_dir(), ["modeling_x", "layers_x"])
        )
    assert [text for text in [str(one.message) for one in caught] + caplog.messages if ".py" in text] == []
    assert "modeling_x.py" in snapshot(saved)
