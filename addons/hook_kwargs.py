# SPDX-License-Identifier: Apache-2.0
"""What the hooks take from their keyword arguments.

Callers pass one superset of keywords to every add-on: unknown ones are ignored, a missing required one and
a known one of the wrong type are an error that names it, raised before anything is written (clauses
HOOK-003 to HOOK-005).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class PeftSave:
    """The checked keywords of `PeftAddon.pre_save`."""

    model_path: Path
    model_state: Any
    peft_config: Any
    tokenizer: Any
    original_model_path: str | None
    v4_compatible: bool


def peft_save(kwargs: Mapping[str, Any]) -> PeftSave:
    """Check and collect the keywords of `PeftAddon.pre_save`.

    Raises:
        TypeError: a required keyword is missing or None, or a known one has the wrong type.
    """
    return PeftSave(
        model_path=_path(_required(kwargs, "model_path"), "model_path"),
        model_state=_model_state(_required(kwargs, "model_state")),
        peft_config=_peft_config(_required(kwargs, "peft_config")),
        tokenizer=_tokenizer(kwargs.get("tokenizer")),
        original_model_path=_optional_path(kwargs, "original_model_path"),
        v4_compatible=_flag(kwargs, "v4_compatible"),
    )


def process_group(kwargs: Mapping[str, Any]) -> dist.ProcessGroup | None:
    """The group whose ranks save together; None is the default group."""
    group: Any = kwargs.get("process_group")
    # torch hands a rank outside a new group this constant instead of a group.
    if group is None or group is dist.GroupMember.NON_GROUP_MEMBER or isinstance(group, dist.ProcessGroup):
        return cast("dist.ProcessGroup | None", group)
    raise _wrong("process_group", group, "a torch.distributed ProcessGroup or None")


def _required(kwargs: Mapping[str, Any], name: str) -> Any:
    if kwargs.get(name) is None:
        raise TypeError(f"the save hook needs the keyword {name!r}")
    return kwargs[name]


def _path(value: Any, name: str) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise _wrong(name, value, "the path of a directory")
    return Path(os.fspath(value))


def _optional_path(kwargs: Mapping[str, Any], name: str) -> str | None:
    value = kwargs.get(name)
    return None if value is None else str(_path(value, name))


def _flag(kwargs: Mapping[str, Any], name: str) -> bool:
    value = kwargs.get(name, False)
    if not isinstance(value, bool):
        raise _wrong(name, value, "True or False")
    return value


def _model_state(value: Any) -> Any:
    parts = getattr(value, "model", None)
    if not isinstance(parts, (list, tuple)) or not parts or not all(isinstance(part, nn.Module) for part in parts):
        raise _wrong("model_state", value, "a ModelState, whose .model is a list of at least one torch module")
    return value


def _peft_config(value: Any) -> Any:
    rank = hasattr(value, "dim") or hasattr(value, "r")
    alpha = hasattr(value, "alpha") or hasattr(value, "lora_alpha")
    if not (rank and alpha and callable(getattr(value, "to_dict", None))):
        raise _wrong("peft_config", value, "an object with dim (or r), alpha (or lora_alpha) and to_dict()")
    return value


def _tokenizer(value: Any) -> Any:
    if value is not None and not callable(getattr(value, "save_pretrained", None)):
        raise _wrong("tokenizer", value, "an object with save_pretrained(directory), or None")
    return value


def _wrong(name: str, value: Any, expected: str) -> TypeError:
    return TypeError(f"the save hook's keyword {name!r} is {value!r} of type {type(value).__name__}: give {expected}")
