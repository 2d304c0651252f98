# SPDX-License-Identifier: Apache-2.0
"""What the reference takes a class for that transformers does not list, by the endings of names in use."""

from __future__ import annotations

import pytest

from addons.heads import task_type
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
