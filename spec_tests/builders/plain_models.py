# SPDX-License-Identifier: Apache-2.0
"""Modules that are not Hugging Face models: with a config as diffusers has it, with no config, with neither."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NoReturn

import transformers
from torch import nn

from spec_tests.builders.randomness import draw_normal, generator


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


def dict_config_model(*, seed: int = 0) -> nn.Module:
    """A module whose ``config`` is a `FrozenDict`, as a diffusers model has it; among the values a tuple and None."""
    model = plain_model(seed)
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
    model = plain_model(seed)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=0.7, max_new_tokens=7, eos_token_id=[2, 3], bos_token_id=1, pad_token_id=0
    )
    return model


def plain_model(seed: int) -> nn.Module:
    """A module with one Linear, and nothing else that a Hugging Face model has."""
    model, source = nn.Module(), generator(seed)
    model.proj = nn.Linear(16, 24)
    for parameter in model.parameters():
        draw_normal(parameter, source, std=0.2)
    return model
