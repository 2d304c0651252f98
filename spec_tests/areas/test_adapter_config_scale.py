# SPDX-License-Identifier: Apache-2.0
"""ADP-027: the scale of a module, in whatever it is held (spec/adapter_config.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spec_tests.harness.export import refusal, save_metadata
from spec_tests.strategies.trees import Leaf, TreeSpec


def buffer(value):
    module = nn.Module()
    module.register_buffer("scale", torch.tensor(value))
    return module.scale


@pytest.mark.clause("ADP-027")
@pytest.mark.parametrize(
    "scale",
    [
        10,
        torch.tensor(10.0),
        torch.tensor([10], dtype=torch.bfloat16),
        buffer(10.0),
        nn.Parameter(torch.tensor(10.0), requires_grad=False),
        np.float32(10),
        np.array(10),
    ],
    ids=lambda scale: type(scale).__name__,
)
def test_scale_of_any_kind_is_read(impl, fresh_dir, scale):
    model = TreeSpec((Leaf("layers.0.q"),)).build()
    model.get_submodule("layers.0.q").scale = scale
    config = save_metadata(impl, model, fresh_dir(), impl.peft_config(dim=4, alpha=8)).config
    (alpha,) = config["alpha_pattern"].values()
    assert alpha / (config.get("rank_pattern") or {"": config["r"]}).popitem()[1] == pytest.approx(10)


@pytest.mark.clause("ADP-027")
@pytest.mark.parametrize(
    "scale", [torch.tensor([1.0, 2.0]), "2", torch.tensor(1.0, device="meta"), float("nan"), np.array(np.inf)], ids=str
)
def test_scale_that_is_no_number_is_refused(impl, fresh_dir, scale):
    directory, model = fresh_dir(), TreeSpec((Leaf("layers.0.q"), Leaf("layers.1.q"))).build()
    model.get_submodule("layers.1.q").scale = scale
    refusal(lambda: save_metadata(impl, model, directory), directory, naming="layers.1.q")
