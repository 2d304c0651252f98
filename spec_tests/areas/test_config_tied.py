# SPDX-License-Identifier: Apache-2.0
"""CFG: what the config says of tied embeddings is what is saved; transformers' reload is the judge (spec/config.md)."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.families import (
    bert_masked_lm,
    image_inputs,
    outputs,
    text_inputs,
    vision_language,
)
from spec_tests.builders.stages import stages
from spec_tests.builders.training import shard_whole
from spec_tests.builders.wrappers import wrap
from spec_tests.consumers.transformers import reload
from spec_tests.harness.export import error_of, indexed_weights, snapshot, text_of
from spec_tests.harness.ranks import SOON, run_ranks, values

TEXT, IMAGE = "AutoModelForCausalLM", "AutoModelForImageTextToText"


def llava(said, inside):
    text = {"model_type": "llama", **hf.SIZES, "tie_word_embeddings": inside}
    return vision_language(tie_word_embeddings=said, text_config=text)


def gemma(said):
    """A tiny Gemma 3 for text: its class ties by default, and its config says so where it says nothing."""
    settings = {**hf.SIZES, "tie_word_embeddings": said, "sliding_window": 16}
    return hf.build(transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig, "tiny/gemma3", settings, 0)


def bart():
    """An encoder and a decoder that are one model: the head is no other model's."""
    sizes = {"vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    kind = transformers.BartForConditionalGeneration
    return hf.build(kind, transformers.BartConfig, "tiny/bart", {**sizes, **heads}, 0)


def untied(model):
    """Give the head numbers of its own, whatever the config says."""
    source = torch.Generator().manual_seed(7)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(torch.randn(head.weight.shape, generator=source) * 0.2)
    return model


def shared(model):
    """Let head and embedding be one tensor, whatever the config says."""
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    return model


# What training left, how it is loaded and run, and how many tensors embedding and head have to be.
LIVE = {
    "llama said and tied": (lambda: hf.llama(tied=True), TEXT, text_inputs, 1),
    "llama said and untied": (lambda: untied(hf.llama(tied=True)), TEXT, text_inputs, 2),
    "llama unsaid and shared": (lambda: shared(hf.llama()), TEXT, text_inputs, 2),
    "gemma said and tied": (lambda: gemma(True), TEXT, text_inputs, 1),
    "bert said and untied": (lambda: untied(bert_masked_lm()), "AutoModelForMaskedLM", text_inputs, 2),
    "bart said and untied": (lambda: untied(bart()), "AutoModelForSeq2SeqLM", text_inputs, None),
    # Version 5 of transformers ties by the setting outside, version 4 by the one inside.
    "llava said outside alone": (lambda: llava(True, False), IMAGE, image_inputs, None),
    "llava said inside and untied": (lambda: untied(llava(False, True)), IMAGE, image_inputs, 2),
    "llava unsaid and untied": (lambda: llava(False, False), IMAGE, image_inputs, 2),
}


def said_by(content):
    """Every ``tie_word_embeddings`` of the config and of its text_config."""
    places = {"": content, "text_config.": content.get("text_config") or {}}
    key = "tie_word_embeddings"
    return {where + key: place[key] for where, place in places.items() if key in place}


def number_of_tensors(saved):
    """How many of the saved tensors are embedding or head."""
    ends = ("embed_tokens.weight", "word_embeddings.weight", "lm_head.weight", "predictions.decoder.weight")
    return sum(name.endswith(ends) for name in saved)


def check_tie(directory, auto_class, inputs, live, number):
    content = json.loads((directory / "config.json").read_text())
    found = number_of_tensors(indexed_weights(directory))
    assert number in (None, found)
    assert "tie_word_embeddings" in content
    assert set(said_by(content).values()) == {found == 1}, said_by(content)
    read = reload(directory, auto_class, inputs())
    assert (read.missing, read.unexpected, read.mismatched, read.errors, read.complaints) == ([], [], [], [], [])
    assert (torch.tensor(read.outputs) - live).abs().max() <= 1e-5
    assert set(said_by(read.config).values()) == {found == 1}, said_by(read.config)


@pytest.mark.clause("CFG-022", "LOAD-003")
def test_head_of_the_decoder_is_not_taken_for_the_encoders(impl, fresh_dir):
    settings = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    bert = transformers.BertConfig(**settings, num_attention_heads=4)
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
    model, directory = transformers.EncoderDecoderModel(config=both).eval(), fresh_dir() / "model"
    impl.save_consolidated(model, directory)
    read, found = transformers.EncoderDecoderModel.from_pretrained(directory, output_loading_info=True)
    assert not found["missing_keys"]
    assert torch.equal(read.get_output_embeddings().weight, model.get_output_embeddings().weight)


def is_refused(error, parent):
    """Whether the save refused to write what it cannot say, which is as good as to say it."""
    return (
        isinstance(error, (TypeError, ValueError)) and "tie_word_embeddings" in text_of(error) and not snapshot(parent)
    )


@pytest.mark.clause("CFG-022")
@pytest.mark.parametrize("which", list(LIVE))
def test_config_says_tied_where_one_tensor_is_saved(impl, fresh_dir, which):
    build, auto_class, inputs, number = LIVE[which]
    parent, model = fresh_dir(), build()
    before = {**said_by(model.config.to_dict())}
    live = outputs(model, inputs())
    error = error_of(lambda: impl.save_consolidated(model, parent / "model"))
    assert said_by(model.config.to_dict()) == before  # a rank that edits its own config alone differs from then on
    if number == 2 and is_refused(error, parent):
        return
    assert error is None, text_of(error)
    check_tie(parent / "model", auto_class, inputs, live, number)


def save_sharded(rank, world, impl, directory, which):
    model = shard_whole(LIVE[which][0]())
    error = error_of(lambda: impl.save_consolidated(model, directory))
    return text_of(error)


@pytest.mark.clause("CFG-022")
def test_sharded_model_says_the_same(impl, fresh_dir):
    which = "llama said and untied"
    build, auto_class, inputs, number = LIVE[which]
    parent = fresh_dir()
    heard = values(run_ranks(2, save_sharded, impl, parent / "model", which, timeout=2 * SOON))
    if all("tie_word_embeddings" in said for said in heard) and not snapshot(parent):
        return
    assert heard == ["", ""]
    check_tie(parent / "model", auto_class, inputs, outputs(build(), inputs()), number)


def save_stages(rank, world, impl, directory):
    # The last stage has a copy of the embedding, which the trainer keeps equal; identity tells nothing here.
    parts = stages(hf.llama(tied=True))
    impl.save_consolidated(parts if world == 1 else [parts[rank]], directory)


@pytest.mark.clause("CFG-022")
@pytest.mark.parametrize("world", [1, 2])
def test_tied_stages_say_what_is_saved(impl, fresh_dir, world):
    directory = fresh_dir() / "model"
    values(run_ranks(world, save_stages, impl, directory, timeout=2 * SOON))
    check_tie(directory, TEXT, text_inputs, outputs(hf.llama(tied=True), text_inputs()), None)


@pytest.mark.clause("CFG-022")
def test_config_of_the_original_says_the_same_or_is_refused(impl, fresh_dir):
    parent, original, model = fresh_dir(), fresh_dir(), untied(hf.llama(tied=True))
    hf.llama(tied=True).config.save_pretrained(original)
    save = {"v4_compatible": True, "original_model_path": str(original)}
    error = error_of(lambda: impl.save_consolidated(model, parent / "model", **save))
    if is_refused(error, parent):
        return
    assert error is None, text_of(error)
    check_tie(parent / "model", TEXT, text_inputs, outputs(model, text_inputs()), 2)


class Outer(transformers.PreTrainedModel):
    """A model of own code around one of transformers', whose embedding and head are its own."""

    config_class = transformers.LlamaConfig

    def __init__(self, inner):
        super().__init__(inner.config)
        self.language_model = inner

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()


def saved_tensors(impl, model, parent):
    """How many tensors of head and embedding are saved; None where the save is refused."""
    error = error_of(lambda: impl.save_consolidated(model, parent / "model"))
    if is_refused(error, parent):
        return None
    assert error is None, text_of(error)
    return number_of_tensors(indexed_weights(parent / "model"))


@pytest.mark.clause("CFG-022")
@pytest.mark.parametrize("tied", [True, False])
def test_model_around_another_says_what_is_saved(impl, fresh_dir, tied):
    parent, inner = fresh_dir(), hf.llama(tied=True)
    model = Outer(inner if tied else untied(inner))
    if (found := saved_tensors(impl, model, parent)) is None:
        return
    assert tied or found == 2
    assert json.loads((parent / "model" / "config.json").read_text())["tie_word_embeddings"] is (found == 1)


class Unsaid(transformers.LlamaConfig):
    """A config whose ``to_dict`` does not have the setting, as Mllama's and BLIP-2's."""

    def to_dict(self):
        return {key: value for key, value in super().to_dict().items() if key != "tie_word_embeddings"}


@pytest.mark.clause("CFG-022")
@pytest.mark.parametrize("tied", [True, False])
def test_config_without_the_setting_says_what_is_saved(impl, fresh_dir, tied):
    parent, model = fresh_dir(), hf.llama(tied=tied)
    model.config.__class__ = Unsaid
    if (found := saved_tensors(impl, model, parent)) is None:
        return
    assert tied or found == 2
    content = json.loads((parent / "model" / "config.json").read_text())
    assert transformers.LlamaConfig.from_dict(content).tie_word_embeddings is (found == 1)


@pytest.mark.clause("CFG-022")
@pytest.mark.parametrize("wrapper", ["compile", "checkpoint"])
def test_wrapped_model_says_what_is_saved(impl, fresh_dir, wrapper):
    build, auto_class, inputs, number = LIVE["llama said and untied"]
    parent, model = fresh_dir(), build()
    live = outputs(model, inputs())
    error = error_of(lambda: impl.save_consolidated(wrap(model, "", wrapper), parent / "model"))
    if number == 2 and is_refused(error, parent):
        return
    assert error is None, text_of(error)
    check_tie(parent / "model", auto_class, inputs, live, number)
