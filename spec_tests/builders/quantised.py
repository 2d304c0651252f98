# SPDX-License-Identifier: Apache-2.0
"""Modules with quantised tensors, and configs that say so in one place or another."""

from __future__ import annotations

from typing import Any, Literal

import torch
import transformers
from torch import nn

from spec_tests.builders import families, hf
from spec_tests.builders.plain_models import FrozenDict, plain_model
from spec_tests.builders.randomness import generator

Where = Literal["parameter", "buffer", "non_persistent_buffer"]
Place = Literal["top", "nested", "dict"]
PLACES: tuple[Place, ...] = ("top", "nested", "dict")


def quantised_model(
    dtype: torch.dtype,
    where: Where = "parameter",
    config: Place = "top",
    *,
    method: str = "mxfp4",
    key: str = "quantization_config",
    seed: int = 0,
) -> nn.Module:
    """A bfloat16 module with one more tensor of ``dtype``, and a config that carries ``quantization_config``.

    Args:
        dtype: of the tensor ``blocks``; an ordinary one makes a model that is not quantised (any more).
        where: what ``blocks`` is. One that is not persistent is no part of the saved state.
        config: ``quantization_config`` is in a LlamaConfig, in a LlavaConfig's ``text_config``, or in a `FrozenDict`.
        method: the ``quant_method`` it names.
        key: another name for ``quantization_config``.
        seed: of the numbers.
    """
    model = plain_model(seed).to(torch.bfloat16)
    blocks = _numbers(dtype, seed)
    if where == "parameter":
        model.blocks = nn.Parameter(blocks, requires_grad=False)
    else:
        model.register_buffer("blocks", blocks, persistent=where == "buffer")
    quantization = {"quant_method": method, "modules_to_not_convert": ["lm_head"]}
    model.config = _quantised_config(config, {key: quantization})
    return model


def _quantised_config(place: Place, quantization: dict[str, Any]) -> Any:
    if place == "dict":
        return FrozenDict(_class_name="TinyTransformer2DModel", sample_size=8, **quantization)
    if place == "top":
        return transformers.LlamaConfig(**hf.SIZES, **quantization)
    text = {"model_type": "llama", **hf.SIZES, **quantization}
    return transformers.LlavaConfig(text_config=text, image_token_index=families.IMAGE_TOKEN)


def _numbers(dtype: torch.dtype, seed: int) -> torch.Tensor:
    if dtype.is_floating_point and dtype.itemsize > 1:
        return torch.randn(4, 16, generator=generator(seed)).to(dtype)
    numbers = torch.randint(0, 100, (4, 16), generator=generator(seed))
    # torch has no conversion to the sub-byte integers: they are what the bytes are said to be.
    return numbers.to(torch.uint8).view(dtype) if dtype.itemsize == 1 and dtype != torch.bool else numbers.to(dtype)
