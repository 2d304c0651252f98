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

import torch
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
    _check_group(kwargs)
    return PeftSave(
        model_path=_path(_required(kwargs, "model_path"), "model_path"),
        model_state=_model_state(_required(kwargs, "model_state")),
        peft_config=_peft_config(_required(kwargs, "peft_config")),
        tokenizer=_tokenizer(kwargs.get("tokenizer")),
        original_model_path=_optional_path(kwargs, "original_model_path"),
        v4_compatible=_flag(kwargs, "v4_compatible"),
    )


@dataclass(frozen=True)
class MetadataSave:
    """The checked keywords of `ConsolidatedHFAddon.pre_save`."""

    hf_metadata_dir: Path
    model_state: Any
    tokenizer: Any
    fqn_to_file_index_mapping: dict[str, int] | None
    original_model_path: str | None
    v4_compatible: bool
    dtype: torch.dtype | None


@dataclass(frozen=True)
class MetadataCopy:
    """The checked keywords of `ConsolidatedHFAddon.post_save`; ``consolidated_path`` is None for shards alone."""

    hf_metadata_dir: Path
    consolidated_path: Path | None


def metadata_save(kwargs: Mapping[str, Any]) -> MetadataSave:
    """Check and collect the keywords of `ConsolidatedHFAddon.pre_save`.

    Raises:
        TypeError: a required keyword is missing or None, or a known one has the wrong type.
    """
    _check_group(kwargs)
    dtype = kwargs.get("dtype")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise _wrong("dtype", dtype, "a torch.dtype or None")
    return MetadataSave(
        hf_metadata_dir=_path(_required(kwargs, "hf_metadata_dir"), "hf_metadata_dir"),
        model_state=_model_state(_required(kwargs, "model_state")),
        tokenizer=_tokenizer(kwargs.get("tokenizer")),
        fqn_to_file_index_mapping=_file_indices(kwargs.get("fqn_to_file_index_mapping")),
        original_model_path=_optional_path(kwargs, "original_model_path"),
        v4_compatible=_flag(kwargs, "v4_compatible"),
        dtype=dtype,
    )


def metadata_copy(kwargs: Mapping[str, Any]) -> MetadataCopy:
    """Check and collect the keywords of `ConsolidatedHFAddon.post_save`.

    The metadata directory is ``hf_metadata_dir``, as in `pre_save`, or ``hf_metadata_path``, as callers say.

    Raises:
        TypeError: a required keyword is missing, or a known one has the wrong type.
    """
    _check_group(kwargs)
    if "consolidated_path" not in kwargs:
        raise TypeError("the save hook needs the keyword 'consolidated_path' (None or '' when only shards are saved)")
    name = "hf_metadata_path" if kwargs.get("hf_metadata_dir") is None else "hf_metadata_dir"
    if kwargs.get(name) is None:
        raise TypeError("the save hook needs the keyword 'hf_metadata_dir' (or 'hf_metadata_path')")
    target = kwargs["consolidated_path"]
    return MetadataCopy(_path(kwargs[name], name), _path(target, "consolidated_path") if target else None)


def process_group(kwargs: Mapping[str, Any]) -> dist.ProcessGroup | None:
    """The group whose ranks save together; None is the default group.

    What is no group counts as the default one, over which the error about it then reaches the other ranks.
    """
    group = kwargs.get("process_group")
    return cast("dist.ProcessGroup", group) if _is_group(group) else None


def _is_group(value: Any) -> bool:
    # torch hands a rank outside a new group this constant instead of a group.
    return isinstance(value, dist.ProcessGroup) or value is dist.GroupMember.NON_GROUP_MEMBER


def _check_group(kwargs: Mapping[str, Any]) -> None:
    group = kwargs.get("process_group")
    if group is not None and not _is_group(group):
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


def _file_indices(value: Any) -> dict[str, int] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and type(index) is int and index >= 1 for name, index in value.items()
    ):
        raise _wrong("fqn_to_file_index_mapping", value, "a dict from parameter names to file numbers, from 1")
    return dict(value)


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
