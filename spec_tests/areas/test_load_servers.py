"""LOAD: what the rules of two servers say of the files. Models of the rules: no server is executed (spec/load.md)."""

from __future__ import annotations

import pytest

from spec_tests.builders.catalogue import TRAINED, cases
from spec_tests.consumers import rules
from spec_tests.harness.export import save_adapter

# What the one or both servers take. DoRA, fused experts and (SGLang) patterns they do not: see the README's table.
BOTH = ("llama", "llama_tied", "llama_combined", "llama_split", "qwen3_moe_v4", "qwen3_moe_dense_and_v4")


def files(impl, directory, kind):
    spec = TRAINED[kind]
    model = spec.trained(impl.adapters)
    save_adapter(impl, model, directory, spec.peft_config(impl.peft_config), **spec.save)
    return rules.read(directory), model.config


@pytest.mark.clause("LOAD-006")
@pytest.mark.parametrize("kind", cases([*BOTH, "bert_classifier", "llama_classifier", "llama_ranks", "llama_alphas"]))
def test_rules_of_vllm_are_kept(impl, fresh_dir, kind):
    written, config = files(impl, fresh_dir(), kind)
    assert rules.vllm(written, config.model_type) == []


@pytest.mark.clause("LOAD-007")
@pytest.mark.parametrize("kind", cases(BOTH))
def test_rules_of_sglang_are_kept(impl, fresh_dir, kind):
    written, config = files(impl, fresh_dir(), kind)
    assert rules.sglang(written, config.vocab_size) == []
