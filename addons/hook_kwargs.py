# SPDX-License-Identifier: Apache-2.0
"""What the hooks take from their keyword arguments.

Callers pass one superset of keywords to every add-on: unknown ones are ignored, a missing required one and
a known one of the wrong type are an error that names it, raised before anything is written (clauses
HOOK-003 to HOOK-005).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Keywords:
    """The checked keywords that a hook takes; None for those that were left out."""

    process_group: Any
    model_path: Path
    hf_metadata_dir: Path
    consolidated_path: Path | None
    model_state: Any
    peft_config: Any
    tokenizer: Any
    original_model_path: str | None
    fqn_to_file_index_mapping: dict[str, int] | None
    fqn_to_dtype_mapping: dict[str, str] | None
    dtype: torch.dtype | None
    v4_compatible: bool
    legacy_paramwrapper_layout: bool


def peft_save(kwargs: Mapping[str, Any]) -> Keywords:
    """The keywords of `PeftAddon.pre_save`.

    Raises:
        TypeError: a required keyword is missing or None, or a known one has the wrong type.
    """
    optional = ("tokenizer", "original_model_path", "v4_compatible", "legacy_paramwrapper_layout")
    return _checked(kwargs, ("model_path", "model_state", "peft_config"), optional)


def metadata_save(kwargs: Mapping[str, Any]) -> Keywords:
    """The keywords of `ConsolidatedHFAddon.pre_save`; raises as `peft_save`."""
    mappings = ("fqn_to_file_index_mapping", "fqn_to_dtype_mapping")
    optional = ("tokenizer", "original_model_path", "v4_compatible", "dtype", *mappings)
    return _checked(kwargs, ("hf_metadata_dir", "model_state"), optional)


def metadata_copy(kwargs: Mapping[str, Any]) -> Keywords:
    """The keywords of `ConsolidatedHFAddon.post_save`; raises as `peft_save`.

    The metadata directory is ``hf_metadata_dir``, as in `pre_save`, or ``hf_metadata_path``, as callers say.
    ``consolidated_path`` may be falsy, and is None then, but not left out.
    """
    if "consolidated_path" not in kwargs:
        raise TypeError("the save hook needs the keyword 'consolidated_path' (None or '' when only shards are saved)")
    source = kwargs.get("hf_metadata_dir")
    source = kwargs.get("hf_metadata_path") if source is None else source
    more = {"hf_metadata_dir": source, "consolidated_path": kwargs["consolidated_path"] or None}
    return _checked({**kwargs, **more}, ("hf_metadata_dir",), ("consolidated_path",))


def process_group(kwargs: Mapping[str, Any]) -> dist.ProcessGroup | None:
    """The group whose ranks save together; None is the default group.

    What is no group counts as the default one, over which the error about it then reaches the other ranks.
    """
    group = kwargs.get("process_group")
    return cast("dist.ProcessGroup", group) if _is_group(group) else None


def _checked(kwargs: Mapping[str, Any], required: Sequence[str], optional: Sequence[str]) -> Keywords:
    found: dict[str, Any] = dict.fromkeys(_KNOWN)
    for name in ("process_group", *required, *optional):
        value, (fits, expected) = kwargs.get(name), _KNOWN[name]
        if value is None and name in required:
            raise TypeError(f"the save hook needs the keyword {name!r}")
        if value is not None and not fits(value):
            raise TypeError(
                f"the save hook's keyword {name!r} is {value!r} of type {type(value).__name__}: give {expected}"
            )
        if fits is _is_path and value is not None:
            value = os.fspath(value) if name == "original_model_path" else Path(value)
        found[name] = value
    return Keywords(**found)


def _is_group(value: Any) -> bool:
    # torch hands a rank outside a new group this constant instead of a group.
    return isinstance(value, dist.ProcessGroup) or value is dist.GroupMember.NON_GROUP_MEMBER


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and isinstance(os.fspath(value), str) and bool(os.fspath(value))


def _is_model_state(value: Any) -> bool:
    parts = getattr(value, "model", None)
    return isinstance(parts, (list, tuple)) and bool(parts) and all(isinstance(part, nn.Module) for part in parts)


def _is_peft_config(value: Any) -> bool:
    rank, alpha = (any(hasattr(value, name) for name in names) for names in (("dim", "r"), ("alpha", "lora_alpha")))
    return rank and alpha and callable(getattr(value, "to_dict", None))


def _is_file_mapping(value: Any) -> bool:
    return _names_have(value, int) and all(index >= 1 for index in value.values())


def _names_have(value: Any, kind: type) -> bool:
    return isinstance(value, Mapping) and all(type(name) is str and type(item) is kind for name, item in value.items())


_PATH = (_is_path, "the path of a directory")
_FLAG = (lambda value: isinstance(value, bool), "True or False")
_KNOWN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_path": _PATH,
    "hf_metadata_dir": _PATH,
    "consolidated_path": _PATH,
    "original_model_path": _PATH,
    "v4_compatible": _FLAG,
    "legacy_paramwrapper_layout": _FLAG,
    "process_group": (_is_group, "a torch.distributed ProcessGroup or None"),
    "model_state": (_is_model_state, "a ModelState, whose .model is a list of at least one torch module"),
    "peft_config": (_is_peft_config, "an object with dim (or r), alpha (or lora_alpha) and to_dict()"),
    "tokenizer": (lambda value: callable(getattr(value, "save_pretrained", None)), "an object with save_pretrained"),
    "fqn_to_file_index_mapping": (_is_file_mapping, "a dict from parameter names to file numbers, from 1"),
    "fqn_to_dtype_mapping": (lambda value: _names_have(value, str), "a dict from parameter names to dtypes, all text"),
    "dtype": (lambda value: isinstance(value, torch.dtype), "a torch.dtype or None"),
}
