# SPDX-License-Identifier: Apache-2.0
"""Tiny models of any family, with drawn weights: how to build one, what to call it with, and what it answers."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterator
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from spec_tests.zoo import given
from spec_tests.zoo.registry import main_architecture
from spec_tests.zoo.shrink import tiny_config

# A model with more parameters than this is not tiny, and is not built.
MOST_PARAMETERS = 4_000_000

# Parameters whose values have a meaning of their own (time steps and decays of state space models, scales of
# logits): drawing them afresh makes infinities, so they are only moved a little.
_MEANT = re.compile(
    r"A_log|(^|\.)A$|dt_(bias|proj\.bias)|time_(decay|first|mix)|logit_scale|log_\w*scale|inv_freq|decay|lambda"
)


def _fan_in(parameter: Tensor) -> int:
    """How many numbers one output is summed from."""
    return max(1, math.prod(parameter.shape[1:]))


def _drawn(name: str, now: Tensor, source: torch.Generator, *, table: bool) -> Tensor:
    """New values for one tensor: never all zero or all one, and small enough for a deep model to stay finite."""
    noise = torch.randn(now.shape, generator=source, dtype=torch.float32)
    value = now.detach().float()
    constant = float(value.flatten()[0]) if bool((value == value.flatten()[0]).all()) else None
    if constant == 0:
        return noise * 0.05
    if constant is not None and math.isfinite(constant) and abs(constant) < 1e4:
        return constant * (1 + 0.1 * noise.clamp(-3, 3))
    if _MEANT.search(name):
        return value * (1 + 0.05 * noise.clamp(-3, 3))
    if now.ndim < 2:
        return noise * 0.1
    return noise * (0.2 if table else min(0.2, max(0.03, 1 / math.sqrt(_fan_in(now)))))


def _kept_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers of numbers that a checkpoint holds."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set and buffer.is_floating_point() and buffer.numel():
                yield f"{prefix}.{name}".lstrip("."), buffer


def _draw(model: PreTrainedModel, seed: int) -> None:
    """Draw the model's weights, and those of its buffers that say nothing (all zero or all one) as they are."""
    source = torch.Generator().manual_seed(seed)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.numel():
                parameter.copy_(_drawn(name, parameter, source, table=id(parameter) in tables))
        for name, buffer in _kept_buffers(model):
            if bool((buffer == buffer.flatten()[0]).all()) and float(buffer.flatten()[0]) in {0.0, 1.0}:
                fresh = _drawn(name, buffer, source, table=False)
                buffer.copy_(fresh.abs() if "var" in name else fresh)


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Parameters and kept buffers in another dtype; what the model computes for itself stays as exact as it was."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for _, buffer in _kept_buffers(model):
            buffer.data = buffer.data.to(dtype)


def _class_of(family: str, architecture: str | None) -> type[PreTrainedModel]:
    """The model class of that name."""
    name = architecture or main_architecture(family)
    if not hasattr(transformers, name):  # a few classes are in their own module only
        module = type(tiny_config(family)).__module__.replace("configuration_", "modeling_")
        return cast("type[PreTrainedModel]", getattr(importlib.import_module(module), name))
    return cast("type[PreTrainedModel]", getattr(transformers, name))


def _weigh(model_class: type[PreTrainedModel], config: Any) -> None:
    """Refuse a model that is too large, before memory is spent on it."""
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in model_class(config).parameters())
    except (RuntimeError, NotImplementedError):  # this family computes with its weights while it is being built
        return
    if size > MOST_PARAMETERS:
        raise ValueError(f"{model_class.__name__} has {size} parameters at its smallest, more than {MOST_PARAMETERS}")


def build(
    family: str,
    architecture: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **settings: Any,
) -> PreTrainedModel:
    """Build a tiny model of a family on the CPU, in evaluation mode, with weights drawn by the seed.

    Args:
        family: The model type, as transformers' registries have it.
        architecture: The name of the model class; by default the family's main one.
        dtype: The dtype of parameters and persistent buffers.
        seed: Two builds with one seed have equal tensors.
        settings: Set on the configuration (on that of the text, where there is one) before the model is built.

    Returns:
        The model.
    """
    config = tiny_config(family)
    model_class = _class_of(family, architecture)
    for name, value in settings.items():
        for holder in {id(part): part for part in (config, config.get_text_config())}.values():
            if holder is not config or hasattr(config, name) or config.get_text_config() is config:
                setattr(holder, name, value)
    _weigh(model_class, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    model.eval()
    _draw(model, seed)
    if dtype != torch.float32:
        _cast(model, dtype)
    return model


def inputs(model: PreTrainedModel, seed: int = 1) -> dict[str, Tensor]:
    """Arguments that the model's forward takes, drawn by the seed: images beside text where it takes both."""
    failures: list[str] = []
    for call in given.calls(model, seed):
        problem = _problem(model, call.arguments)
        if problem is None:
            return call.arguments
        failures.append(call.report(problem))
    raise ValueError(f"no arguments found for {type(model).__name__}: " + " | ".join(failures[-4:]))


def _problem(model: PreTrainedModel, arguments: dict[str, Tensor]) -> Exception | None:
    """What is wrong with these arguments; nothing, if the model answers them."""
    try:
        output(model, arguments)
    except Exception as problem:  # noqa: BLE001 - whatever a forward raises says that it wants other arguments
        return problem
    return None


def _numbers(answer: Any) -> Iterator[Tensor]:
    """The tensors of numbers in an answer, in order; caches are no answer."""
    if isinstance(answer, Tensor):
        if answer.is_complex():
            answer = torch.view_as_real(answer)
        if answer.is_floating_point():
            yield answer.detach().float().flatten()
    elif isinstance(answer, dict):
        for name, part in answer.items():
            if not re.search(r"past|cache|mems|buckets|^state$|^(decoder_|encoder_)?rnn_state", str(name)):
                yield from _numbers(part)
    elif isinstance(answer, (list, tuple)):
        for part in answer:
            yield from _numbers(part)


def output(model: PreTrainedModel, arguments: dict[str, Tensor]) -> Tensor:
    """All numbers that the model answers to these arguments, in one dimension and in float32."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = list(_numbers(model(**arguments)))
    flat = torch.cat(found) if found else torch.empty(0)
    if not flat.numel():
        raise ValueError(f"{type(model).__name__} answers no numbers")
    if not bool(flat.isfinite().all()):
        raise ValueError(f"{type(model).__name__} answers numbers that are not finite")
    return flat
