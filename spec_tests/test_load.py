"""LOAD: what PEFT makes of it on the real Hugging Face model (spec/load.md)."""

from __future__ import annotations

import pytest
import torch

from spec_tests.builders import hf
from spec_tests.builders.trained import KINDS
from spec_tests.builders.training import logits, sample_input_ids
from spec_tests.consumers.peft import expected_modules, reload
from spec_tests.harness.export import save_adapter


@pytest.mark.clause("LOAD-001", "LOAD-002")
@pytest.mark.parametrize("kind", list(KINDS))
def test_reloaded_adapter_computes_what_was_trained(impl, fresh_dir, kind):
    spec, ids = KINDS[kind], sample_input_ids()
    base = hf.save_base(spec.base(), fresh_dir())
    model = spec.trained(impl.adapters)
    trained, untrained = logits(model, ids), logits(spec.base(), ids)
    assert (trained - untrained).abs().max() > 0.1
    written = save_adapter(impl, model, fresh_dir(), spec.peft_config(impl.peft_config), **spec.save)

    read = reload(base, written.directory, ids)
    assert (read.missing, read.ignored, read.complaints) == ([], [], [])
    assert read.modules == expected_modules(written.modules)
    assert (torch.tensor(read.base_logits) - untrained).abs().max() <= 1e-5
    assert (torch.tensor(read.logits) - trained).abs().max() <= 1e-5
