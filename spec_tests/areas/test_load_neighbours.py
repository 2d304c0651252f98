# SPDX-License-Identifier: Apache-2.0
"""LOAD for modules without LoRA whose names end like a target's (spec/load.md)."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from torch import nn

from spec_tests.builders.injected import config_for
from spec_tests.builders.randomness import draw_normal, generator
from spec_tests.builders.renaming import renaming_adapter
from spec_tests.builders.trained import ALPHA, RANK
from spec_tests.harness.export import refusal, save_adapter, save_metadata


class Towers(nn.Module):
    """Two towers with the same names inside; one may have no linear layers."""

    def __init__(self, other=nn.Linear, name="q", tower="vision"):
        super().__init__()
        torch.manual_seed(0)
        self.name, self.tower = name, tower
        self.layers = nn.ModuleList([nn.ModuleDict({name: nn.Linear(4, 4)})])
        kind = other(4, 4) if other is nn.Linear else other(4)
        self.add_module(tower, nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({name: kind})])}))

    def forward(self, x):
        return getattr(self, self.tower)["layers"][0][self.name](self.layers[0][self.name](x))


def injected(model):
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=rf"layers\.0\.{model.name}")
    with torch.random.fork_rng(devices=[]):
        wrapped = peft.get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_(".lora_" in name)  # PEFT 0.18 trains whatever has `lora_` in its name
        if "lora_B" in name:
            draw_normal(parameter, generator(0), std=0.5)
    return wrapped


def check_that_the_other_tower_stays_without_lora(live, written, base):
    assert written.modules == ["layers.0.q"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        read = peft.PeftModel.from_pretrained(base, str(written.directory))
    found = {name.partition(".lora_")[0] for name, _ in read.named_parameters() if ".lora_" in name}
    assert found == {"base_model.model.layers.0.q"}
    x = torch.ones(1, 4)
    torch.testing.assert_close(read(x), live(x))


@pytest.mark.clause("LOAD-009")
@pytest.mark.parametrize("other", [nn.Linear, nn.LayerNorm], ids=lambda kind: kind.__name__)
def test_module_of_another_tower_stays_without_lora(impl, fresh_dir, other):
    live = injected(Towers(other))
    written = save_adapter(impl, live, fresh_dir(), config_for(impl, live.peft_config["default"]))
    check_that_the_other_tower_stays_without_lora(live, written, Towers(other))


@pytest.mark.clause("LOAD-009")
@pytest.mark.needs("moe_adapter")
def test_module_without_parameters_stays_without_lora_beside_an_adapter_for_experts(impl, fresh_dir):
    live = injected(Towers(nn.Identity))
    live.get_base_model().state_dict_adapter = impl.adapters["moe"](True)
    written = save_adapter(impl, live, fresh_dir(), config_for(impl, live.peft_config["default"]))
    check_that_the_other_tower_stays_without_lora(live, written, Towers(nn.Identity))


def nested(size):
    return nn.Sequential(nn.Linear(size, size))


@pytest.mark.clause("LOAD-009", "TGT-022")
@pytest.mark.parametrize(
    ("other", "tower"), [(nn.Linear, "vision"), (nn.Linear, "flora_tower"), (nested, "vision"), (nn.Identity, "vision")]
)
def test_renamed_module_of_another_tower_stays_without_lora(impl, fresh_dir, other, tower):
    live = injected(Towers(other, "mixer", tower))
    live.get_base_model().state_dict_adapter = renaming_adapter(impl.adapter_base, "mixer", "q")
    written = save_adapter(impl, live, fresh_dir(), config_for(impl, live.peft_config["default"]))
    check_that_the_other_tower_stays_without_lora(live, written, Towers(other, tower=tower))


@pytest.mark.clause("LOAD-009")
def test_module_that_cannot_be_kept_apart_is_refused(impl, fresh_dir):
    # a.q is excluded for x.a.q, whose end it is; so it would exclude the target y.a.q... of which it is the end too.
    model = nn.ModuleDict({"q": nn.Linear(4, 4), "a": nn.ModuleDict({"q": nn.Linear(4, 4)})})
    model["y"] = nn.ModuleDict({"a": nn.ModuleDict({"q": nn.Linear(4, 4)})})
    live = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=r"q|y\.a\.q"))
    assert len([name for name, _ in live.named_parameters() if "lora_A" in name]) == 2
    directory = fresh_dir()
    config = config_for(impl, live.peft_config["default"])
    refusal(lambda: save_metadata(impl, live, directory, config), directory, naming="y.a.q")
