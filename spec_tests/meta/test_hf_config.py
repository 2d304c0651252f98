# SPDX-License-Identifier: Apache-2.0
"""What the reference makes of configs, beyond what a clause asks for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from addons import hf_config, save_consolidated, seed_helpers
from spec_tests.builders import hf


def written(model, directory, original=None):
    seed_helpers._save_generated_hf_assets(model, original, directory, None, v4_compatible=original is not None)
    return json.loads((directory / "config.json").read_text())


def test_dtype_is_that_of_most_elements_and_not_of_the_largest_tensor(tmp_path):
    model = nn.Sequential(
        *[nn.Linear(8, 8, bias=False, dtype=torch.bfloat16) for _ in range(3)], nn.Linear(16, 8, bias=False)
    )
    model.config = hf.llama().config
    content = written(model, tmp_path / "out")
    assert {content[key] for key in ("dtype", "torch_dtype") if key in content} == {"bfloat16"}


def test_settings_of_a_quantisation_that_is_gone_need_no_json_form(tmp_path):
    model = hf.llama()
    model.config.quantization_config = SimpleNamespace(quant_method="fp8")
    assert "quantization_config" not in written(model, tmp_path / "out")


def test_place_of_a_value_without_a_json_form_starts_at_the_config():
    model = hf.llama()
    model.config.odd = [object()]
    with pytest.raises(TypeError, match=r"^config\['odd'\]\[0\] must be"):
        hf_config.config_content(model, None, quantised=False)


@dataclass
class Untyped:
    """A config that is none of transformers'."""

    hidden_size: int = 4
    router_dtype: torch.dtype = torch.float32

    @classmethod
    def from_dict(cls, content):
        return cls(content["hidden_size"], getattr(torch, content["router_dtype"]))


def test_config_without_a_type_is_written_with_an_empty_one(tmp_path):
    model = nn.Linear(4, 4)
    model.config = Untyped()
    content = written(model, tmp_path / "out")
    assert content == {
        "architectures": ["Linear"],
        "hidden_size": 4,
        "model_type": "",
        "router_dtype": "float32",
    }


def test_original_is_compared_as_the_class_of_the_config_reads_it(tmp_path):
    model, original = nn.Linear(4, 4), {"hidden_size": 4, "router_dtype": "bfloat16"}
    model.config = Untyped()
    (tmp_path / "config.json").write_text(json.dumps(original))
    assert written(model, tmp_path / "out", tmp_path) == original


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        (["decoder.layers.0.w", "decoder.layers.1.w", "neck.layers.1.w"], "2 in 'decoder.layers'"),
        (["decoder.layers.0.w", "neck.layers.1.w"], "0 in 'neck.layers'"),
        (["neck.layers.1.w", "decoder.layers.0.w"], "0 in 'neck.layers'"),
    ],
)
def test_layer_is_missed_in_the_list_that_has_most(names, lacking):
    with pytest.raises(ValueError, match=rf"num_hidden_layers, here num_hidden_layers\), got no layer {lacking}"):
        hf_config.check_layers(nn.Linear(1, 1), {"num_hidden_layers": 3}, names)


class OwnConfig(transformers.LlamaConfig):
    """A config of own code, as some write ``to_dict`` anew: the class alone knows the type."""

    def to_dict(self):
        return {key: value for key, value in super().to_dict().items() if key != "model_type"}


def test_model_of_own_code_is_what_config_and_class_say(tmp_path):
    model = nn.Linear(4, 4)
    model.config = OwnConfig(architectures=["LlamaForCausalLM"])
    content = written(model, tmp_path / "out")
    assert (content["model_type"], content["architectures"]) == ("llama", ["LlamaForCausalLM"])


def test_layer_that_the_original_does_not_count_is_missed_too(tmp_path):
    original = tmp_path / "original"
    original.mkdir()
    (original / "config.json").write_text('{"model_type": "own"}')
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(4, 4)])
    model.config = {"model_type": "own", "num_hidden_layers": 2}
    with pytest.raises(ValueError, match="num_hidden_layers"):
        save_consolidated(model, tmp_path / "out", v4_compatible=True, original_model_path=str(original))
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_models_without_words_keep_what_they_say_of_tying():
    """As transformers 4 writes CLIP's towers."""
    words, vision = {"vocab_size": 4, "tie_word_embeddings": False}, {"tie_word_embeddings": False}
    content = {"tie_word_embeddings": False, "text_config": {**words, "deep": vision}, "vision_config": vision}
    found = hf_config.with_tensors(content, None, True)
    assert found == {
        "tie_word_embeddings": True,
        "text_config": {"vocab_size": 4, "tie_word_embeddings": True, "deep": vision},
        "vision_config": vision,
    }
