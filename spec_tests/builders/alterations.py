# SPDX-License-Identifier: Apache-2.0
"""What trainers do to a model beside LoRA: whole modules trained, wrappers put inside it."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from spec_tests.builders.randomness import draw_normal, generator
from spec_tests.builders.wrappers import wrap


def train(*modules: str) -> Callable[[nn.Module], nn.Module]:
    """An alteration: these modules were trained in full."""

    def trained(model: nn.Module) -> nn.Module:
        source = generator(3)
        for name in modules:
            for parameter in model.get_submodule(name).parameters():
                draw_normal(parameter.requires_grad_(), source, std=0.5)
        return model

    return trained


def wrapped(model: nn.Module) -> nn.Module:
    """An alteration: activation checkpointing and compilation inside the model."""
    return wrap(wrap(model, "model.layers.0.self_attn", "checkpoint"), "model.layers.1.mlp", "compile")
