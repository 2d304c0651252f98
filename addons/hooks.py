# SPDX-License-Identifier: Apache-2.0
"""What all hooks have in common: the protocol, and the keywords that callers pass.

Callers pass one superset of keywords to every add-on: unknown ones are ignored, a missing required one and
a known one of the wrong type are an error that names it, raised before anything is written (clauses
HOOK-003 to HOOK-005).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import nn


class CheckpointAddon(Protocol):
    """Optional hooks around the IO of a checkpoint backend (clause HOOK-001).

    Every rank of the model calls both hooks with the same keywords. Hooks ignore keywords they do not know.
    """

    def pre_save(self, **kwargs: Any) -> None:
        """Runs before the backend writes the weights."""

    def post_save(self, **kwargs: Any) -> None:
        """Runs after the backend has written the weights."""


def process_group(kwargs: Mapping[str, Any]) -> dist.ProcessGroup | None:
    """The group whose ranks save together; None is the default group.

    What is no group counts as the default one, over which the error about it then reaches the other ranks.
    """
    group = kwargs.get("process_group")
    return cast("dist.ProcessGroup", group) if _is_group(group) else None


def checked(kwargs: Mapping[str, Any], required: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    """The named keywords, with None for what is left out (clause HOOK-008), and directories as `Path`.

    Raises:
        TypeError: a required keyword is missing or None, or one has the wrong type.
    """
    found: dict[str, Any] = {}
    for name in ("process_group", *required, *optional):
        value, (fits, expected) = kwargs.get(name), _KNOWN[name]
        if value is None and name in required:
            raise TypeError(f"the save hook's keyword {name!r} must be {expected}, got None or nothing: pass it")
        if value is not None and not fits(value):
            raise TypeError(
                f"the save hook's keyword {name!r} must be {expected}, got {value!r} of type {type(value).__name__}: "
                "correct it"
            )
        if fits is _is_path and value is not None:
            value = os.fspath(value) if name == "original_model_path" else Path(value)
        found[name] = value
    del found["process_group"]
    return found


def check_alike(views: Iterable[tuple[Sequence[int], Mapping[str, Any]]]) -> None:
    """Compare what decides the files, between ranks that differ in something (clauses RANK-009, RANK-010).

    Args:
        views: ranks, and their settings by name.

    Raises:
        ValueError: two ranks have different settings.
    """
    (first_ranks, first), *others = views
    for ranks, settings in others:
        for name, value in settings.items():
            if first[name] != value:
                raise ValueError(
                    f"{name} must be the same on all ranks, got {first[name]!r} on rank {first_ranks[0]} and {value!r} "
                    f"on rank {ranks[0]}: pass the same everywhere"
                )


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


def form_asked_of(exporter: Any, v4_compatible: bool) -> dict[str, bool]:
    """The keyword ``v4_compatible`` of an exporter's ``save``; none where that is of the form without (HOOK-016).

    Raises:
        TypeError: that form is asked for ``v4_compatible=True``, which it cannot hear of.
    """
    taken = inspect.signature(exporter.save).parameters.values()
    if any(one.name == "v4_compatible" or one.kind is one.VAR_KEYWORD for one in taken):
        return {"v4_compatible": v4_compatible}
    if v4_compatible:
        raise TypeError(
            f"{type(exporter).__name__}.save must take v4_compatible to save with v4_compatible=True, got none: add it"
        )
    return {}
