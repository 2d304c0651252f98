# SPDX-License-Identifier: Apache-2.0
"""The bundled adapter of experts, where no released trainer's shape of it is asked for by a clause."""

from __future__ import annotations

import torch
from torch import nn

from addons import Qwen3MoeStateDictAdapter, _is_qwen3_moe


class _NoGate(Qwen3MoeStateDictAdapter):
    @property
    def _is_gated_moe(self):
        return False


def test_base_weights_of_fused_experts_without_a_gate_have_their_own_name():
    weights = {f"mlp.experts.{name}": torch.zeros(2, 4, 6) for name in ("gate_and_up_projs", "down_projs")}
    assert sorted(_NoGate().to_hf(weights)) == ["mlp.experts.down_proj", "mlp.experts.up_proj"]
    assert sorted(Qwen3MoeStateDictAdapter().to_hf(weights)) == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]


def test_tensors_beside_base_weights_stay_as_they_are():
    named = {
        f"model.layers.0.mlp.experts.{name}": torch.rand(2, 4, 6)
        for name in ("gate_and_up_projs_scale", "down_projs.scale", "my.gate_and_up_projs.count")
    }
    weights = {
        f"model.layers.0.mlp.experts.{name}": torch.rand(2, 4, 6) for name in ("gate_and_up_projs", "down_projs")
    }
    alone = Qwen3MoeStateDictAdapter().to_hf(dict(weights))
    together = Qwen3MoeStateDictAdapter().to_hf({**weights, **named})
    assert together.keys() == alone.keys() | named.keys()
    assert all(together[name].equal(tensor) for name, tensor in {**alone, **named}.items())


def test_model_is_known_inside_what_does_not_pass_attributes_on():
    model = nn.Linear(2, 2)
    model.state_dict_adapter = Qwen3MoeStateDictAdapter()
    assert _is_qwen3_moe(nn.DataParallel(model))
