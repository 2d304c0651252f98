# SPDX-License-Identifier: Apache-2.0
"""Arguments that the reference refuses by name, beyond what a clause asks for."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import addons
from addons import hf_addon, hf_config, hooks, ranks, save, seed_helpers, weights
from addons.hooks import check_alike
from addons.plain_json import json_safe
from spec_tests.builders import hf
from spec_tests.implementations.base import TrainerPeftConfig
from spec_tests.strategies.trees import Leaf, TreeSpec


def test_quantisation_is_stripped_inside_what_does_not_pass_attributes_on():
    model = hf.llama()
    model.config.quantization_config = {"quant_method": "awq"}
    seed_helpers._maybe_strip_quantization_config(nn.DataParallel(model))
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "5GB"])
def test_size_of_files_is_a_whole_number_from_one(tmp_path, size):
    with pytest.raises((TypeError, ValueError), match="max_shard_bytes"):
        addons.save_consolidated(hf.llama(), tmp_path / "out", max_shard_bytes=size)
    assert list(tmp_path.iterdir()) == []


def test_group_is_a_group(tmp_path):
    with pytest.raises(TypeError, match="'process_group' must be a"):
        addons.save_consolidated(hf.llama(), tmp_path / "out", process_group="world")
    assert list(tmp_path.iterdir()) == []


def test_destination_has_a_name():
    with pytest.raises(OSError, match="directory with a name"):
        addons.save_adapter(TreeSpec((Leaf("q"),)).build(), "/", TrainerPeftConfig(dim=4, alpha=8))


def test_staged_metadata_goes_somewhere_or_nowhere(tmp_path):
    with pytest.raises(TypeError, match="'consolidated_path' must be a path, or None"):
        addons.ConsolidatedHFAddon().post_save(hf_metadata_dir=str(tmp_path))


def test_settings_are_a_dict(tmp_path):
    class Config(TrainerPeftConfig):
        def to_dict(self):
            return ["dim", 4]

    with pytest.raises(TypeError, match=r"to_dict\(\) must give a dict, got list"):
        addons.save_adapter(TreeSpec((Leaf("q"),)).build(), tmp_path / "out", Config(dim=4, alpha=8))


def test_device_is_its_name_and_a_class_is_refused():
    assert json_safe({"device": torch.device("cpu")}, "config") == {"device": "cpu"}
    with pytest.raises(TypeError, match=r"config\['kind'\]"):
        json_safe({"kind": Leaf}, "config")


def test_model_state_of_a_checkpointer_need_not_know_of_pipelines(tmp_path):
    state = SimpleNamespace(model=[TreeSpec((Leaf("q"),)).build()])
    config = TrainerPeftConfig(dim=4, alpha=8)
    addons.PeftAddon().pre_save(model_path=tmp_path, model_state=state, peft_config=config)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert addons._get_hf_peft_config(config, state) == written


def test_settings_without_a_dict_are_refused(tmp_path):
    save = {"model_path": tmp_path, "model_state": addons.ModelState(TreeSpec((Leaf("q"),)).build(), is_peft=True)}
    with pytest.raises(TypeError, match="'peft_config' must be"):
        addons.PeftAddon().pre_save(**save, peft_config=SimpleNamespace(dim=4, alpha=8))
    assert list(tmp_path.iterdir()) == []


OUTSIDE = torch.distributed.GroupMember.NON_GROUP_MEMBER  # what torch gives a rank that is not in a group


@pytest.mark.parametrize(("given", "group"), [(None, None), ("world", None), (OUTSIDE, OUTSIDE)])
def test_what_is_no_group_counts_as_the_default_one(given, group):
    assert hooks.process_group({"process_group": given}) is group


@pytest.mark.parametrize("name", ["model_path", "original_model_path"])
@pytest.mark.parametrize("path", ["a//b", Path("a/b")])
def test_original_path_stays_the_text_that_it_is(name, path):
    # It may be the name of a repository, and an exporter is to get it as it was given.
    kept = os.fspath(path) if name == "original_model_path" else Path(path)
    assert repr(hooks.checked({name: path}, (name,), ())) == repr({name: kept})


@pytest.mark.parametrize("path", ["", b"a", 7])
def test_path_is_text(path):
    with pytest.raises(TypeError, match="'model_path' must be the path of a directory"):
        hooks.checked({"model_path": path}, ("model_path",), ())


def test_model_state_of_a_whole_model_is_its_weights():
    model = hf.llama()
    assert addons.ModelState(model).state_dict().keys() == model.state_dict().keys()


def test_helpers_give_what_the_files_hold(tmp_path):
    model, config = TreeSpec((Leaf("layers.0.q"),)).build(), TrainerPeftConfig(dim=4, alpha=8)
    assert seed_helpers._extract_target_modules(model) == ["layers.0.q"]
    assert seed_helpers._extract_target_parameters([model]) == []
    assert not seed_helpers._get_automodel_peft_metadata(config).keys() & {"dim", "alpha"}
    seed_helpers._maybe_strip_quantization_config(nn.Linear(1, 1))
    seed_helpers._save_original_config_json(tmp_path, tmp_path / "out", "config.json")
    seed_helpers._maybe_save_custom_model_code(None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "modeling_mine.py").write_text("x = 1\n")
    seed_helpers._maybe_save_custom_model_code(tmp_path, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["modeling_mine.py"]


def test_converted_names_are_left_out_by_their_beginnings():
    state = {"mlp.gate": torch.ones(1), "lm_head.weight": torch.ones(1)}
    assert addons.Qwen3MoeStateDictAdapter().to_hf(state, exclude_key_regex="lm_").keys() == {"mlp.gate"}


def test_tensor_without_elements_has_its_place_in_the_file(tmp_path):
    tensors = {"a": torch.ones(2), "empty": torch.ones(0, 3), "z": torch.zeros(1)}
    weights.write_safetensors(tmp_path / "file", tensors)
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    assert all(found[name].equal(tensor) for name, tensor in tensors.items())


def test_device_of_a_group_that_has_no_cpu(monkeypatch):
    monkeypatch.setattr(ranks.dist, "get_backend_config", lambda _group: "cuda:nccl")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert ranks.group_device(None) == torch.device("cuda", 3)


class Odd(OrderedDict):
    """A config that refuses to be changed by its own methods."""

    def __delitem__(self, key):
        raise TypeError("frozen")

    pop = __delitem__


@pytest.mark.parametrize("kind", [dict, Odd])
def test_quantisation_settings_go_from_any_dict(kind):
    inner = kind(compression_config={"bits": 4}, kept=1)
    config = kind(text_config=inner, quantization_config={"bits": 4})
    hf_config.strip_quantisation(config)
    assert config == {"text_config": {"kept": 1}}


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"destination": "/other"}, "directory must be the same on all ranks, got '/out' on rank 0 and '/other' on"),
        ({"path": "/x"}, "original_model_path must be the same on all ranks, got None on rank 0 and '/x' on"),
        (
            {"tokenizer": 1},
            "whether there is a tokenizer must be the same on all ranks, got False on rank 0 and True on",
        ),
    ],
)
def test_ranks_are_told_which_setting_of_a_save_they_differ_in(odd, said):
    def settings(destination="/out", path=None, tokenizer=None):
        return save._settings(SimpleNamespace(original_model_path=path, tokenizer=tokenizer), destination)

    with pytest.raises(ValueError, match=f"^{said}"):
        check_alike([([0], settings()), ([1], settings(**odd))])


@pytest.mark.parametrize(("name", "value"), [("v4_compatible", True), ("dtype", torch.bfloat16)])
def test_setting_that_ranks_differ_in_is_named_as_its_keyword(tmp_path, name, value):
    same = {"hf_metadata_dir": str(tmp_path), "model_state": addons.ModelState(hf.llama())}
    saves = [hf_addon.metadata_save(keywords) for keywords in (same, {**same, name: value})]
    with pytest.raises(ValueError, match=f"^{name} must be the same on all ranks"):
        hf_addon.check_views([([rank], hf_addon.model_view(save, ())) for rank, save in enumerate(saves)])
