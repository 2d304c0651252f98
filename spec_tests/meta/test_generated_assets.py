# SPDX-License-Identifier: Apache-2.0
"""What an exporter of a trainer's own gets from the reference, beyond clause HOOK-015."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import addons
from addons.seed_helpers import _save_generated_hf_assets
from spec_tests.builders import hf
from spec_tests.builders.exporting import Exporter, exporting_model


@pytest.mark.parametrize("quantised", [True, False])
def test_quantisation_is_that_of_the_given_config(tmp_path, quantised):
    model = hf.llama()
    deployed = copy.deepcopy(model.config)
    deployed.quantization_config = {"quant_method": "gptq", "bits": 4}
    if quantised:
        model.model.layers[0].mlp.register_buffer("qweight", torch.ones(4, 4, dtype=torch.int32))
    _save_generated_hf_assets(model, None, str(tmp_path), None, False, model_config=deployed)
    content = json.loads((tmp_path / "config.json").read_text())
    assert ("quantization_config" in content) is quantised


def test_save_of_a_whole_model_leaves_the_metadata_to_its_exporter(tmp_path):
    exporter = Exporter({"config.json": '{"of": "the exporter"}'})
    addons.save_consolidated(exporting_model(exporter), tmp_path / "out")
    assert [step for step, _ in exporter.calls] == ["validate", "save"]
    assert (tmp_path / "out" / "config.json").read_text() == '{"of": "the exporter"}'
    assert not (tmp_path / "out" / "generation_config.json").exists()
