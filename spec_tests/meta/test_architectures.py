# SPDX-License-Identifier: Apache-2.0
"""What the reference takes a class for that transformers does not list, by the endings of names in use."""

from __future__ import annotations

import inspect

import pytest
import transformers
from torch import nn

from addons.heads import task_type
from spec_tests.builders import hf
from spec_tests.strategies.trees import Leaf, TreeSpec


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("QWenLMHeadModel", "CAUSAL_LM"),
        ("MyForCausalLM", "CAUSAL_LM"),
        ("MyModel", "FEATURE_EXTRACTION"),
        ("MyModelForSequenceClassification", "SEQ_CLS"),
    ],
)
def test_task_of_a_class_of_own_code(name, task):
    assert task_type(TreeSpec((Leaf("q"),), architecture=name).build()) == task


@pytest.mark.parametrize(("encodes", "task"), [(True, "SEQ_2_SEQ_LM"), (False, "CAUSAL_LM")])
def test_task_of_own_code_that_generates_on_a_condition_follows_its_config(encodes, task):
    model = TreeSpec((Leaf("q"),), architecture="MyForConditionalGeneration").build()
    model.config.is_encoder_decoder = encodes
    assert task_type(model) == task


class OwnForConditionalGeneration(nn.Module):
    """A model without a config."""


def test_class_that_does_not_say_that_it_encodes_does_not():
    assert task_type(OwnForConditionalGeneration()) == "CAUSAL_LM"


def test_architecture_that_is_written_without_a_list_counts_as_a_whole():
    model = TreeSpec((Leaf("q"),)).build()
    model.config.architectures = "LlamaForSequenceClassification"
    assert task_type(model) == "SEQ_CLS"


ANYHOW = inspect.Parameter.POSITIONAL_OR_KEYWORD
PASSED = (
    *("input_ids", "attention_mask", "inputs_embeds"),
    *("output_attentions", "output_hidden_states", "return_dict"),
)


def taking(kind, name, words):
    """A model whose forward takes these words and no other."""

    def forward(self, **_given):
        raise NotImplementedError

    names = ("self", *words)
    forward.__signature__ = inspect.Signature([inspect.Parameter(one, ANYHOW) for one in names])
    model = type(name, (kind,), {"forward": forward})(hf.llama().config)
    model.config.architectures = None
    return model


@pytest.mark.parametrize(
    ("kind", "name", "words", "task"),
    [
        (transformers.LlamaModel, "OwnModel", PASSED, "FEATURE_EXTRACTION"),
        (transformers.LlamaForCausalLM, "OwnForCausalLM", (*PASSED, "labels"), "CAUSAL_LM"),
    ],
)
def test_model_that_takes_just_what_peft_passes_has_a_task(kind, name, words, task):
    assert task_type(taking(kind, name, words)) == task
    for lacking in words:
        assert task_type(taking(kind, name, [word for word in words if word != lacking])) is None, lacking
