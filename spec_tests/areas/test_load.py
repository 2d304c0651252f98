"""LOAD: what PEFT makes of it on the real Hugging Face model (spec/load.md)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED, loadable, tagged
from spec_tests.builders.families import outputs
from spec_tests.builders.mergeable import gpt2
from spec_tests.builders.randomness import draw_normal, generator
from spec_tests.builders.trained import ALPHA, RANK
from spec_tests.consumers.forms import installed_form
from spec_tests.consumers.peft import expected_modules, reload
from spec_tests.harness.export import REFUSED, error_of, save_adapter, snapshot
from spec_tests.strategies.experts import without_lora


def reloaded_as_trained(impl, fresh_dir, spec):
    inputs = spec.inputs()
    base = hf.save_base(spec.base(), fresh_dir())
    model = spec.trained(impl.adapters)
    trained, untrained = outputs(model, inputs), outputs(spec.base(), inputs)
    assert (trained - untrained).abs().max() > 0.1
    save = {**spec.save, **(installed_form() if spec.experts else {})}
    written = save_adapter(impl, model, fresh_dir(), spec.peft_config(impl.peft_config), **save)

    read = reload(base, written.directory, inputs, spec.auto_class)
    assert (read.missing, read.ignored, read.complaints) == ([], [], [])
    assert read.modules == expected_modules(written.modules)
    assert (torch.tensor(read.base_logits) - untrained).abs().max() <= 1e-5
    assert (torch.tensor(read.logits) - trained).abs().max() <= 1e-5


@pytest.mark.clause("LOAD-001", "LOAD-002")
@pytest.mark.parametrize("kind", loadable(tagged("usual")))
def test_reloaded_adapter_computes_what_was_trained(impl, fresh_dir, kind):
    reloaded_as_trained(impl, fresh_dir, TRAINED[kind])


@pytest.mark.clause("LOAD-005")
@pytest.mark.parametrize("kind", loadable(tagged("family")))
def test_adapter_of_a_further_family_computes_what_was_trained(impl, fresh_dir, kind):
    reloaded_as_trained(impl, fresh_dir, TRAINED[kind])


def lora_beside(layer, source):
    """A trainer's LoRA on a layer that holds its weight [in, out]; returns its update of the weight."""
    (inputs, outputs), scale = layer.weight.shape, ALPHA / RANK
    layer.lora_A, layer.lora_B = nn.Linear(inputs, RANK, bias=False), nn.Linear(RANK, outputs, bias=False)
    layer.scale = scale
    draw_normal(layer.lora_A.weight, source, std=0.3)
    draw_normal(layer.lora_B.weight, source, std=0.3)
    return (scale * (layer.lora_B.weight @ layer.lora_A.weight).T).detach()


@pytest.mark.clause("LOAD-005")
@pytest.mark.parametrize("names", [["c_attn"], ["c_attn", "c_fc", "c_proj"]], ids="-".join)
def test_layers_that_hold_their_weights_turned_compute_what_was_trained(impl, fresh_dir, names):
    live, expected = gpt2().requires_grad_(False), gpt2().requires_grad_(False)
    base = hf.save_base(gpt2(), fresh_dir())
    for name, layer in list(live.named_modules()):
        if name.rpartition(".")[2] in names:
            expected.get_submodule(name).weight += lora_beside(layer, generator(len(name)))
    written = save_adapter(impl, live, fresh_dir(), impl.peft_config(dim=RANK, alpha=ALPHA))
    inputs = {"input_ids": torch.arange(8).reshape(2, 4)}
    read = reload(base, written.directory, inputs)
    assert (read.missing, read.ignored, read.complaints) == ([], [], [])
    assert (torch.tensor(read.logits) - outputs(expected, inputs)).abs().max() <= 1e-5
    assert (torch.tensor(read.base_logits) - outputs(expected, inputs)).abs().max() > 0.1


@pytest.mark.clause("LOAD-005")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("left_out", ["gate_and_up", "down"])
def test_one_projection_of_experts_is_loaded_or_refused(impl, fresh_dir, left_out):
    spec, directory = TRAINED["qwen3_moe_v4"], fresh_dir()
    live = spec.trained(impl.adapters)
    for name, module in live.named_modules():
        if name.endswith("mlp.experts"):
            without_lora(module, left_out)
    config = spec.peft_config(impl.peft_config)
    error = error_of(lambda: save_adapter(impl, live, directory, config, **spec.save))
    if error is not None:
        assert isinstance(error, REFUSED), error
        assert snapshot(directory) == {}
        return
    read = reload(hf.save_base(spec.base(), fresh_dir()), directory, spec.inputs(), spec.auto_class)
    assert (read.missing, read.ignored, read.complaints) == ([], [], [])


@pytest.mark.clause("ADP-021")
@pytest.mark.parametrize("kind", tagged("head"))
def test_head_travels_with_the_adapter(impl, fresh_dir, kind):
    reloaded_as_trained(impl, fresh_dir, TRAINED[kind])


@pytest.mark.clause("ADP-014", "ADP-017")
@pytest.mark.parametrize("kind", loadable(tagged("ranks")))
def test_ranks_and_scales_that_differ_come_back(impl, fresh_dir, kind):
    reloaded_as_trained(impl, fresh_dir, TRAINED[kind])


@pytest.mark.clause("TGT-021")
@pytest.mark.parametrize("kind", tagged("injected"))
def test_lora_that_peft_injected_comes_back(impl, fresh_dir, kind):
    reloaded_as_trained(impl, fresh_dir, TRAINED[kind])


@pytest.mark.clause("TGT-019")
@pytest.mark.needs("qwen3_moe_adapter")
@pytest.mark.parametrize("kind", loadable(tagged("dense beside experts")))
def test_dense_modules_beside_experts_come_back(impl, fresh_dir, kind):
    reloaded_as_trained(impl, fresh_dir, TRAINED[kind])
