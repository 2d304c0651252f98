# SPDX-License-Identifier: Apache-2.0
"""ADP: heads and tasks of classes that PEFT does not know (spec/adapter_config.md)."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers

from spec_tests.builders import families, hf
from spec_tests.builders.lora import apply_dense_lora
from spec_tests.builders.trained import ALPHA, ATTENTION, RANK
from spec_tests.harness.export import PREFIX, Adapter, save_adapter, save_metadata
from spec_tests.strategies.trees import Leaf, TreeSpec


class PlainForSequenceClassification(transformers.LlamaForSequenceClassification):
    """A classifier that is called with tokens alone, as no class of PEFT's calls one."""

    def forward(self, input_ids=None):
        return super().forward(input_ids)


@pytest.mark.clause("ADP-021")
@pytest.mark.parametrize("trained", [True, False])
def test_head_of_a_classifier_that_peft_cannot_call_travels(impl, fresh_dir, trained):
    live = PlainForSequenceClassification(families.llama_classifier().config).requires_grad_(False)
    live.score.requires_grad_(trained)
    apply_dense_lora(live, ATTENTION, RANK, ALPHA)
    written = save_adapter(impl, live, fresh_dir(), impl.peft_config(dim=RANK, alpha=ALPHA))
    assert torch.equal(written.tensors[f"{PREFIX}score.weight"], live.score.weight)


@pytest.mark.clause("ADP-023")
def test_task_type_of_an_own_class_with_a_head_of_words(impl, fresh_dir):
    model = TreeSpec((Leaf("model.layers.0.q_proj"),), architecture="QWenLMHeadModel").build()
    assert save_metadata(impl, model, fresh_dir()).config["task_type"] == "CAUSAL_LM"


@pytest.mark.clause("ADP-021")
def test_trained_head_that_holds_its_layers_deeper_travels(impl, fresh_dir):
    kind, config = transformers.DebertaV2ForSequenceClassification, transformers.DebertaV2Config
    live = hf.build(kind, config, "tiny/deberta", {**hf.SIZES, "num_labels": 3}, 0).requires_grad_(False)
    apply_dense_lora(live, ("query_proj",), RANK, ALPHA)
    live.pooler.requires_grad_()
    written = save_adapter(impl, live, fresh_dir(), impl.peft_config(dim=RANK, alpha=ALPHA)).tensors
    key = f"{PREFIX}pooler.dense.weight"
    assert key in written
    assert torch.equal(written[key], live.pooler.dense.weight)


@pytest.mark.clause("ADP-021")
@pytest.mark.needs("save_adapter", "model_parts")
@pytest.mark.parametrize("turned", [False, True], ids=["last", "first"])
def test_head_of_one_stage_travels_with_all(impl, fresh_dir, turned):
    task, directory = {"architecture": "LlamaForSequenceClassification"}, fresh_dir() / "adapter"
    first = TreeSpec((Leaf("model.layers.0.q_proj"),), **task).build()
    last = TreeSpec((Leaf("model.layers.1.q_proj"), Leaf("score", "none")), **task).build()
    parts = [last, first] if turned else [first, last]
    impl.save_adapter(parts, directory, impl.peft_config(dim=4, alpha=8))
    written = Adapter(directory)
    assert written.config["modules_to_save"] == ["score"]
    assert torch.equal(written.tensors[f"{PREFIX}score.weight"], last.score.weight)


class ThreeWordsModel(transformers.LlamaModel):
    """It takes no `output_attentions`, which PEFT's classes for tasks pass on."""

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        return super().forward(input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds)


@pytest.mark.clause("ADP-025")
def test_model_that_peft_passes_more_than_it_takes_can_be_called_after_loading(impl, fresh_dir):
    live = ThreeWordsModel(hf.llama().config).requires_grad_(False)
    live.config.architectures = ["ThreeWordsModel"]
    apply_dense_lora(live, ATTENTION, RANK, ALPHA)
    written = save_adapter(impl, live, fresh_dir(), impl.peft_config(dim=RANK, alpha=ALPHA))
    again = peft.PeftModel.from_pretrained(ThreeWordsModel(live.config), str(written.directory))
    given = torch.tensor([[1, 5, 9]])
    assert again(input_ids=given)[0].shape == live(given)[0].shape
