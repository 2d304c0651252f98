# SPDX-License-Identifier: Apache-2.0
"""Models with tensors that are no matrix of floats: without a dimension, without an element, integers, float8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import transformers
from safetensors.torch import save
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.randomness import generator


def is_named(dtype: torch.dtype) -> bool:
    """Whether the installed safetensors has a name for a dtype."""
    try:
        save({"": torch.empty(0, dtype=dtype)})
    except Exception:  # noqa: BLE001 - of several types, all of them its way to say that it knows no such dtype
        return False
    return True


def there(*names: str) -> list[torch.dtype]:
    """Those of the dtypes that the installed torch has."""
    return [getattr(torch, name) for name in names if hasattr(torch, name)]


Kind = Literal["parameter", "buffer", "transposed", "slice"]
KINDS: tuple[Kind, ...] = ("parameter", "buffer", "transposed", "slice")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_FNUZ = (torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, *(one for one in _FNUZ if is_named(one)))
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
INTEGERS = (
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
    *(one for one in _UNSIGNED if is_named(one)),
)
"""What the installed safetensors has a name for, of dtypes in which nothing is computed."""


class Tensor(NamedTuple):
    """One tensor of a model: dtype, shape, and what holds it in which layout (a parameter unless it says buffer)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    kind: Kind = "parameter"


def holder(tensors: Sequence[Tensor], seed: int = 0) -> nn.Module:
    """A module with a config whose tensors ``t00``, ``t01`` and so on are drawn bit by bit, without NaN."""
    model, source = nn.Module(), generator(seed)
    for number, one in enumerate(tensors):
        name, values = f"t{number:02}", _laid_out(one, source)
        if one.kind == "buffer":
            model.register_buffer(name, values)
        else:
            model.register_parameter(name, nn.Parameter(values, requires_grad=values.dtype in FLOATS))
    model.config = transformers.PretrainedConfig(architectures=["Holder"])
    return model


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor in row-major order."""
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def described(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    """All that has to come back: dtype, shape and bits."""
    return str(tensor.dtype), tuple(tensor.shape), bits(tensor)


def cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """The tensor as a save with that ``dtype`` holds it: plain floats are cast, all others are kept."""
    return tensor.to(dtype) if dtype is not None and tensor.dtype in FLOATS else tensor


def clip(*, seed: int = 0) -> transformers.PreTrainedModel:
    """A CLIPModel, whose ``logit_scale`` is a parameter without a dimension."""
    text = {**hf.SIZES, "max_position_embeddings": 16, "projection_dim": 16}
    for name in ("num_key_value_heads", "head_dim"):
        del text[name]
    vision: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 8,
        "patch_size": 4,
        "projection_dim": 16,
    }
    settings = {"text_config": text, "vision_config": vision, "projection_dim": 16}
    return hf.build(transformers.CLIPModel, transformers.CLIPConfig, "tiny/clip", settings, seed)


def resnet(*, seed: int = 0) -> transformers.PreTrainedModel:
    """A ResNetForImageClassification that has counted batches: integers without a dimension beside float statistics."""
    settings = {
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "num_labels": 3,
        "layer_type": "basic",
    }
    model_class, config_class = transformers.ResNetForImageClassification, transformers.ResNetConfig
    model = hf.build(model_class, config_class, "tiny/resnet", settings, seed).train()
    with torch.no_grad():
        for step in range(3):
            model(pixel_values=images(seed=step))
    return model.eval()


def images(*, seed: int = 0) -> torch.Tensor:
    """Two random images [2, 3, 8, 8]."""
    return torch.randn(2, 3, 8, 8, generator=generator(seed))


def _laid_out(one: Tensor, source: torch.Generator) -> torch.Tensor:
    values = _drawn(one.dtype, one.shape, source)
    if one.kind == "transposed":
        return values.movedim(0, -1).contiguous().movedim(-1, 0) if values.ndim > 1 else values
    if one.kind == "slice":
        # A view into the middle of a longer memory, as a part of a combined matrix is.
        around = torch.stack([_drawn(one.dtype, one.shape, source), values, _drawn(one.dtype, one.shape, source)])
        return around[1]
    return values


def _drawn(dtype: torch.dtype, shape: tuple[int, ...], source: torch.Generator) -> torch.Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    values = torch.randint(0, 256, (size,), generator=source, dtype=torch.uint8)
    if dtype is torch.bool:
        values &= 1
    drawn = values.view(dtype).reshape(shape)
    if dtype in FLOATS:
        drawn = torch.where(drawn.isnan(), torch.zeros((), dtype=dtype), drawn)
    return drawn
