# SPDX-License-Identifier: Apache-2.0
"""Trained models, and what tests of the builders ask of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spec_tests.builders import combined, experts, hf, lora, training

IDS = training.sample_input_ids()
DENSE = ("q_proj", "k_proj", "v_proj", "o_proj")


def native_moe(dense: bool = True, **settings: Any) -> nn.Module:
    model = hf.qwen3_moe(**settings)
    experts.to_native_moe(model)
    experts.apply_expert_lora(model, dim=4, alpha=8)
    if dense:
        lora.apply_dense_lora(model, DENSE, dim=4, alpha=8)
    lora.randomise_lora(model)
    return model


def combined_llama(use_dora: bool = False, **settings: Any) -> nn.Module:
    model = hf.llama(**settings)
    combined.combine_projections(model)
    lora.apply_dense_lora(model, ["qkv_proj", "gate_up_proj"], dim=4, alpha=8, use_dora=use_dora)
    lora.randomise_lora(model)
    return model


def trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max())
