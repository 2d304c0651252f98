# SPDX-License-Identifier: Apache-2.0
"""Models that are no plain Hugging Face model: another config, none, a prefix of their own, quantised tensors."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal, NoReturn

import torch
import transformers
from torch import nn

from spec_tests.builders import families, hf
from spec_tests.builders.randomness import draw_normal, generator

Where = Literal["parameter", "buffer", "non_persistent_buffer"]
Place = Literal["top", "nested", "dict"]
PLACES: tuple[Place, ...] = ("top", "nested", "dict")


class FrozenDict(OrderedDict[str, Any]):
    """A config as diffusers keeps it: an ordered dict whose entries are attributes too, and cannot change.

    An attribute can be deleted, as there; the entry stays. It has neither ``to_dict`` nor ``to_json_string``;
    copies and pickles are frozen again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for key, value in dict(*args, **kwargs).items():
            super().__setitem__(key, value)
            super().__setattr__(key, value)

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError(f"{type(self).__name__} is frozen")

    __setitem__ = __delitem__ = __setattr__ = __ior__ = _refuse
    setdefault = pop = popitem = update = clear = move_to_end = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


class Encoder(nn.Module):
    """Holds a bare Hugging Face model as ``model``, as encoder trainers do; ``config`` is the held model's.

    Every key of its state starts with ``model.``, which none on disk does.
    """

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The held model's last hidden state [batch, length, hidden]."""
        return self.model(**inputs).last_hidden_state


def encoder_model(kind: Literal["bert", "llama"] = "bert", *, seed: int = 0) -> Encoder:
    """An `Encoder` around a BertModel, or around a LlamaModel (a decoder used as an encoder)."""
    if kind == "bert":
        return Encoder(families.bert_encoder(seed=seed))
    settings = {**hf.SIZES, "tie_word_embeddings": False}
    return Encoder(hf.build(transformers.LlamaModel, transformers.LlamaConfig, "tiny/llama", settings, seed))


def dict_config_model(*, seed: int = 0) -> nn.Module:
    """A module whose ``config`` is a `FrozenDict`, as a diffusers model has it; among the values a tuple and None."""
    model = _plain_model(seed)
    model.config = FrozenDict(
        _class_name="TinyTransformer2DModel",
        _diffusers_version="0.35.1",
        _name_or_path="tiny/transformer-2d",
        sample_size=8,
        block_out_channels=(16, 24),
        act_fn="silu",
        cross_attention_dim=None,
        norm_eps=1e-5,
    )
    return model


def generation_only_model(*, seed: int = 0) -> nn.Module:
    """A module with a ``generation_config`` that differs from the defaults, and without ``config``."""
    model = _plain_model(seed)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=0.7, max_new_tokens=7, eos_token_id=[2, 3], bos_token_id=1, pad_token_id=0
    )
    return model


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
    model = _plain_model(seed).to(torch.bfloat16)
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


def _plain_model(seed: int) -> nn.Module:
    model, source = nn.Module(), generator(seed)
    model.proj = nn.Linear(16, 24)
    for parameter in model.parameters():
        draw_normal(parameter, source, std=0.2)
    return model


def _numbers(dtype: torch.dtype, seed: int) -> torch.Tensor:
    if dtype.is_floating_point and dtype.itemsize > 1:
        return torch.randn(4, 16, generator=generator(seed)).to(dtype)
    numbers = torch.randint(0, 100, (4, 16), generator=generator(seed))
    # torch has no conversion to the sub-byte integers: they are what the bytes are said to be.
    return numbers.to(torch.uint8).view(dtype) if dtype.itemsize == 1 and dtype != torch.bool else numbers.to(dtype)
