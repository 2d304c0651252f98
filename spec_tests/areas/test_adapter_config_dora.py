# SPDX-License-Identifier: Apache-2.0
"""ADP: DoRA, in the config and in the model (spec/adapter_config.md, ADP-015)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED, tagged
from spec_tests.builders.lora import apply_dense_lora, randomise_lora
from spec_tests.builders.trained import ALPHA, RANK
from spec_tests.consumers.peft import reload
from spec_tests.harness.export import REFUSED, error_of, refusal, save_adapter, save_metadata, snapshot, text_of


@pytest.mark.clause("ADP-015")
@pytest.mark.parametrize("said", [True, False])
def test_dora_in_config_or_model_alone_is_refused(impl, fresh_dir, said):
    directory = fresh_dir()
    model = TRAINED["llama"].base()
    apply_dense_lora(model, ["q_proj"], RANK, ALPHA, use_dora=not said)
    randomise_lora(model)
    config = impl.peft_config(dim=RANK, alpha=ALPHA, use_dora=said)
    error = refusal(lambda: save_metadata(impl, model, directory, config), directory, kinds=(ValueError, RuntimeError))
    assert "dora" in text_of(error).lower()


@pytest.mark.clause("ADP-015")
def test_dora_on_some_modules_only_is_refused(impl, fresh_dir):
    directory = fresh_dir()
    model = TRAINED["llama_dora"].trained(impl.adapters)
    del model.model.layers[0].self_attn.q_proj.lora_magnitude
    config = TRAINED["llama_dora"].peft_config(impl.peft_config)
    refusal(lambda: save_metadata(impl, model, directory, config), directory, kinds=(ValueError, RuntimeError))


@pytest.mark.clause("ADP-015")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("v4_compatible", [True, False])
def test_dora_beside_experts_is_refused(impl, fresh_dir, v4_compatible):
    directory = fresh_dir()
    spec = replace(TRAINED["qwen3_moe_fused"], use_dora=True)
    model, config = spec.trained(impl.adapters), spec.peft_config(impl.peft_config)
    refusal(
        lambda: save_metadata(impl, model, directory, config, v4_compatible=v4_compatible),
        directory,
        kinds=(ValueError, RuntimeError),
    )


@pytest.mark.clause("ADP-015")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("v4_compatible", [True, False])
@pytest.mark.parametrize("kind", tagged("dense beside experts"))
def test_dora_on_dense_modules_beside_experts_is_read_or_refused(impl, fresh_dir, kind, v4_compatible):
    directory, spec = fresh_dir(), replace(TRAINED[kind], use_dora=True)
    model, config = spec.trained(impl.adapters), spec.peft_config(impl.peft_config)
    error = error_of(lambda: save_adapter(impl, model, directory, config, v4_compatible=v4_compatible))
    if error is not None:
        assert isinstance(error, REFUSED), error
        assert snapshot(directory) == {}
    else:
        # PEFT itself says whether it knows DoRA together with what is listed.
        read = reload(hf.save_base(spec.base(), fresh_dir()), directory, spec.inputs(), spec.auto_class)
        assert (read.missing, read.ignored, read.complaints) == ([], [], [])
