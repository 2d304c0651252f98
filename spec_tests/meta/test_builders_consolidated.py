# SPDX-License-Identifier: Apache-2.0
"""The builders of whole checkpoints' models, and the reader that loads what was saved of them."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors import safe_open

from spec_tests.builders import code, encoders, families, plain_models, quantised, training
from spec_tests.builders.randomness import generator
from spec_tests.consumers import transformers as reader
from spec_tests.harness.modules_cache import use_modules_cache

if TYPE_CHECKING:
    from pathlib import Path

FAMILIES = pytest.mark.parametrize("name", families.WHOLE)
TIED = {
    "llama_tied": [["lm_head.weight", "model.embed_tokens.weight"]],
    "t5": [["decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "lm_head.weight", "shared.weight"]],
    "bert_masked_lm": [
        ["bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"],
        ["cls.predictions.bias", "cls.predictions.decoder.bias"],
    ],
}


def _outputs(name: str, **settings: Any) -> torch.Tensor:
    family = families.MODELS[name]
    return families.outputs(family.build(**settings), family.inputs())


class TestFamilies:
    @FAMILIES
    def test_a_seed_gives_the_same_model_and_leaves_the_global_generator(self, name: str) -> None:
        before = torch.get_rng_state()
        first, second, other = (_outputs(name, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first, second)
        assert float((first - other).abs().max()) > 0.1

    @FAMILIES
    def test_models_are_tiny_and_their_numbers_tell_apart(self, name: str) -> None:
        model = families.MODELS[name].build()
        assert sum(parameter.numel() for parameter in model.parameters()) < 40_000
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert (model.config.architectures, model.training) == ([type(model).__name__], False)
        assert model.config.name_or_path.startswith("tiny/")
        assert float(families.outputs(model, families.MODELS[name].inputs()).std()) > 0.1

    @FAMILIES
    def test_a_clean_load_of_a_plain_save_computes_the_same(self, name: str, tmp_path: Path) -> None:
        family = families.MODELS[name]
        model = family.build()
        model.save_pretrained(tmp_path)
        read = reader.reload(tmp_path, family.auto_class, family.inputs())
        assert read.model_class == type(model).__name__
        assert (read.missing, read.unexpected, read.mismatched, read.errors, read.complaints) == ([], [], [], [], [])
        assert (read.dtype, read.dtypes, read.tied) == ("float32", ["float32"], TIED.get(name, []))
        assert read.config["model_type"] == model.config.model_type
        assert (read.generation_config is None) == (not model.can_generate())
        difference = torch.tensor(read.outputs) - families.outputs(model, family.inputs())
        assert float(difference.abs().max()) <= 1e-5

    def test_every_parameter_of_the_vision_tower_and_the_image_count(self) -> None:
        model = families.vision_language()
        inputs = families.image_inputs()
        plain = families.outputs(model, inputs)
        other = {**inputs, "pixel_values": torch.randn(2, 3, 8, 8, generator=generator(5))}
        assert float((families.outputs(model, other) - plain).abs().max()) > 0.1
        assert int((inputs["input_ids"] == families.IMAGE_TOKEN).sum()) == 2 * model.config.image_seq_length
        model.zero_grad()
        model(**inputs).logits.sum().backward()
        idle = [name for name, one in model.named_parameters() if one.grad is None or not bool(one.grad.any())]
        # The tower's pooled output alone passes its last norm, and a key's bias moves no attention weight.
        assert not [name for name in idle if "post_layernorm" not in name and "k_proj.bias" not in name]

    def test_a_vision_language_model_has_other_names_on_disk(self, tmp_path: Path) -> None:
        model = families.vision_language()
        model.save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", "pt") as weights:
            assert not set(weights.keys()) <= set(model.state_dict())
        assert {"text_config", "vision_config"} <= set(json.loads((tmp_path / "config.json").read_text()))

    def test_three_labels_and_fused_projections(self) -> None:
        assert families.bert_classifier().config.num_labels == 3
        assert _outputs("bert_classifier").shape == (2, 3)
        names = {name.rpartition(".")[2] for name, _ in families.phi3().named_modules()}
        assert {"qkv_proj", "gate_up_proj"} <= names
        assert not {"q_proj", "gate_proj"} & names


class TestModelsThatAreNoHuggingFaceModel:
    @pytest.mark.parametrize("kind", ["bert", "llama"])
    def test_an_encoder_holds_its_model_under_a_prefix(self, kind: Any) -> None:
        model = encoders.encoder_model(kind)
        assert all(name.startswith("model.") for name in model.state_dict())
        assert {name.removeprefix("model.") for name in model.state_dict()} == set(model.model.state_dict())
        assert model.config is model.model.config
        assert model(**families.text_inputs()).last_hidden_state.shape == (2, 8, 32)

    def test_a_frozen_dict_reads_by_attribute_and_refuses_change(self) -> None:
        config = plain_models.dict_config_model().config
        assert (config.act_fn, config["act_fn"], config.block_out_channels) == ("silu", "silu", (16, 24))
        assert not hasattr(config, "to_json_string")
        changes = {
            "item": lambda: config.__setitem__("act_fn", "relu"),
            "attribute": lambda: setattr(config, "act_fn", "relu"),
            "delete": lambda: config.__delitem__("act_fn"),
            "pop": lambda: config.pop("act_fn"),
            "update": lambda: config.update(act_fn="relu"),
            "union": lambda: config.__ior__({"act_fn": "relu"}),
        }
        for change in changes.values():
            with pytest.raises(TypeError, match="frozen"):
                change()
        for again in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
            assert (type(again), again, again.act_fn) == (type(config), config, "silu")

    def test_a_model_with_a_generation_config_alone_reads_back(self, tmp_path: Path) -> None:
        model = plain_models.generation_only_model()
        assert not hasattr(model, "config")
        model.generation_config.save_pretrained(tmp_path)
        read, complaints = reader.read_generation_config(tmp_path)
        assert complaints == []
        assert read == model.generation_config.to_diff_dict()
        assert {"temperature": 0.7, "eos_token_id": [2, 3]}.items() <= read.items()

    @pytest.mark.parametrize("where", ["parameter", "buffer", "non_persistent_buffer"])
    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8, torch.int16, torch.bfloat16], ids=str)
    def test_a_quantised_tensor_is_where_it_was_asked_for(self, dtype: torch.dtype, where: Any) -> None:
        model = quantised.quantised_model(dtype, where)
        assert ("blocks" in dict(model.named_parameters())) == (where == "parameter")
        assert ("blocks" in dict(model.named_buffers())) == (where != "parameter")
        assert ("blocks" in model.state_dict()) == (where != "non_persistent_buffer")
        assert model.blocks.dtype == dtype
        assert {model.proj.weight.dtype, model.proj.bias.dtype} == {torch.bfloat16}

    def test_a_quantisation_config_is_where_it_was_asked_for(self) -> None:
        top, nested, plain = (quantised.quantised_model(torch.uint8, config=at).config for at in quantised.PLACES)
        assert top.quantization_config["quant_method"] == plain["quantization_config"]["quant_method"] == "mxfp4"
        assert nested.text_config.quantization_config["quant_method"] == "mxfp4"
        assert not hasattr(nested, "quantization_config")
        assert (isinstance(top, transformers.LlamaConfig), type(plain)) == (True, plain_models.FrozenDict)


class TestRemoteCode:
    def test_the_folder_holds_the_snapshot_and_the_model_its_classes(self, tmp_path: Path) -> None:
        model = code.remote_code_model(tmp_path / "model")
        snapshot = code.remote_code_snapshot()
        copied = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        assert copied == {path.name: path.read_bytes() for path in snapshot.iterdir() if path.is_file()}
        assert {name for name in copied if name.endswith(".py")} == set(code.CODE_FILES)
        assert type(model).__module__.startswith("transformers_modules.")
        assert model.config.name_or_path == str(tmp_path / "model")
        assert float(families.outputs(model, families.text_inputs()).std()) > 0.5

    def test_a_clean_load_needs_trust_and_every_file(self, tmp_path: Path) -> None:
        model = code.remote_code_model(tmp_path / "model").to(torch.bfloat16)
        inputs = families.text_inputs()
        saved = tmp_path / "saved"
        model.save_pretrained(saved)
        read = reader.reload(saved, code.AUTO_CLASS, inputs, trust_remote_code=True)
        assert (read.missing, read.unexpected, read.complaints, read.tied) == ([], [], [], [])
        assert (read.dtype, read.config["dtype"], read.config["sharpness"]) == ("bfloat16", "bfloat16", 1.5)
        assert torch.equal(torch.tensor(read.outputs), families.outputs(model, inputs))
        config, complaints = reader.read_config(saved, trust_remote_code=True)
        assert (config["model_type"], complaints) == ("tiny_remote", [])
        with pytest.raises(ValueError, match="trust_remote_code"):
            reader.reload(saved, code.AUTO_CLASS, inputs)
        (saved / "activation_tinyremote.py").unlink()
        with pytest.raises(FileNotFoundError, match="activation_tinyremote"):
            reader.reload(saved, code.AUTO_CLASS, inputs, trust_remote_code=True)

    def test_a_clean_load_runs_the_checkpoint_s_code_and_no_copy_of_it(self, tmp_path: Path) -> None:
        model = code.remote_code_model(tmp_path)
        model.save_pretrained(tmp_path)
        before = reader.reload(tmp_path, code.AUTO_CLASS, families.text_inputs(), trust_remote_code=True)
        activation = tmp_path / "activation_tinyremote.py"
        activation.write_text(activation.read_text().replace("gelu(sharp", "relu(sharp"))
        after = reader.reload(tmp_path, code.AUTO_CLASS, families.text_inputs(), trust_remote_code=True)
        assert torch.equal(torch.tensor(before.outputs), families.outputs(model, families.text_inputs()))
        assert float((torch.tensor(after.outputs) - torch.tensor(before.outputs)).abs().max()) > 0.01

    def test_code_is_kept_out_of_the_home_and_in_one_cache(self, tmp_path: Path) -> None:
        code.remote_code_model(tmp_path / "model")
        assert "hf-modules-" in str(sys.modules["transformers_modules"].__file__)
        with pytest.raises(RuntimeError, match="already loaded"):
            use_modules_cache(tmp_path)


class TestReader:
    def test_what_is_wrong_with_the_weights_is_told(self, tmp_path: Path) -> None:
        family = families.MODELS["llama"]
        state = family.build().state_dict()
        state["model.stray.weight"] = state.pop("model.norm.weight")
        family.build().save_pretrained(tmp_path, state_dict=state)
        read = reader.reload(tmp_path, family.auto_class, family.inputs())
        assert (read.missing, read.unexpected) == (["model.norm.weight"], ["model.stray.weight"])
        assert read.complaints

    @pytest.mark.parametrize(("asked", "found"), [("auto", "bfloat16"), ("float32", "float32")])
    def test_the_dtype_is_the_checkpoint_s_unless_one_is_asked_for(
        self, asked: str, found: str, tmp_path: Path
    ) -> None:
        model = families.llama_tied().to(torch.bfloat16)
        model.save_pretrained(tmp_path)
        inputs = {"input_ids": training.sample_input_ids()}
        read = reader.reload(tmp_path, "AutoModelForCausalLM", inputs, dtype=asked)
        assert (read.dtype, read.dtypes) == (found, [found])
        assert len(read.tied) == 1

    def test_a_bare_model_answers_with_its_last_hidden_state(self, tmp_path: Path) -> None:
        model = encoders.encoder_model().model
        model.save_pretrained(tmp_path)
        read = reader.reload(tmp_path, "AutoModel", families.text_inputs())
        assert torch.tensor(read.outputs).shape == (2, 8, 32)
