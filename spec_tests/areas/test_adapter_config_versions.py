# SPDX-License-Identifier: Apache-2.0
"""ADP: an adapter that an older PEFT than the writer's can read (spec/adapter_config.md)."""

from __future__ import annotations

from dataclasses import fields

import peft
import pytest

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED, cases, tagged
from spec_tests.harness.export import save_metadata

OLDEST = "0.18."
KEYS = frozenset(
    {
        "alora_invocation_tokens",
        "alpha_pattern",
        "arrow_config",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layer_replication",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "target_parameters",
        "task_type",
        "trainable_token_indices",
        "use_dora",
        "use_qalora",
        "use_rslora",
    }
)
"""What `peft.LoraConfig` of PEFT 0.18.0 and 0.18.1 has; compared with the installed one where it is that."""


@pytest.mark.clause("ADP-033")
@pytest.mark.parametrize("kind", cases(tagged("usual")))
def test_every_key_is_one_that_the_oldest_peft_knows(impl, fresh_dir, kind):
    spec = TRAINED[kind]
    installed = {field.name for field in fields(peft.LoraConfig)}
    assert installed == KEYS if peft.__version__.startswith(OLDEST) else installed > KEYS
    config, model = spec.peft_config(impl.peft_config), spec.trained(impl.adapters)
    assert save_metadata(impl, model, fresh_dir(), config, **spec.save).config.keys() <= KEYS


@pytest.mark.clause("ADP-033")
@pytest.mark.needs("peft_injected")
def test_settings_of_a_newer_peft_add_no_key(impl, fresh_dir):
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(hf.llama(), config)
    assert save_metadata(impl, model, fresh_dir(), config).config.keys() <= KEYS
