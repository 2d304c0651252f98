# SPDX-License-Identifier: Apache-2.0
"""ADP: heads and tasks of classes that PEFT does not know (spec/adapter_config.md)."""

from __future__ import annotations

import pytest
import torch
import transformers

from spec_tests.builders import families
from spec_tests.builders.lora import apply_dense_lora
from spec_tests.builders.trained import ALPHA, ATTENTION, RANK
from spec_tests.harness.export import PREFIX, save_adapter, save_metadata
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
