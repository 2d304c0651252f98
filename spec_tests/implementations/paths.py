# SPDX-License-Identifier: Apache-2.0
"""Bind a trainer by where its names are: for a layout that is not that of ``addons``.

::

    from spec_tests.implementations.paths import from_paths

    IMPLEMENTATION = from_paths(
        "my_trainer",
        peft_addon="my_trainer.export.lora:LoraHooks",
        model_state="my_trainer.state:TrainState",
        adapters={"qwen3_moe": "my_trainer.models.qwen:Qwen3MoeNames"},
        helpers={"_extract_target_modules": "my_trainer.export.lora:lora_targets"},
        capabilities=["model_parts"],
    )
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spec_tests.harness.known_failures import read_known_failures
from spec_tests.implementations.base import Implementation, trainer_peft_config, unchanged
from spec_tests.implementations.package import adapter_tensors, model_state_factory, version_of


def from_paths(
    name: str,
    *,
    peft_addon: str,
    model_state: str,
    consolidated_addon: str | None = None,
    adapters: Mapping[str, str] | None = None,
    helpers: Mapping[str, str] | None = None,
    tensors: str | None = None,
    save_adapter: str | None = None,
    save_consolidated: str | None = None,
    recover: str | None = None,
    peft_config: str | None = None,
    adapter_base: str | None = None,
    capabilities: Iterable[str] = (),
    translate: Callable[[str, dict[str, Any]], dict[str, Any]] = unchanged,
    known_failures: str | Path | None = None,
) -> Implementation:
    """The implementation whose names are at those paths, each ``package.module:Name``.

    What is left out is not claimed. ``tensors`` is `Implementation.adapter_tensors`, by default the state dict
    through the model's own adapter; the other arguments are the fields of `Implementation` of the same name.

    Raises:
        pytest.UsageError: a path leads nowhere.
    """
    return Implementation(
        name=name,
        version=version_of(_at(re.split("[.:]", peft_addon)[0])),
        origin=f"bound by the paths of {name}",
        peft_addon=_at(peft_addon),
        consolidated_addon=_at(consolidated_addon),
        model_state=model_state_factory(SimpleNamespace(ModelState=_at(model_state))),
        peft_config=_at(peft_config) or trainer_peft_config,
        adapters={key: _at(path) for key, path in (adapters or {}).items()},
        helpers={key: _at(path) for key, path in (helpers or {}).items()},
        adapter_tensors=_at(tensors) or adapter_tensors,
        save_adapter=_at(save_adapter),
        save_consolidated=_at(save_consolidated),
        recover=_at(recover),
        adapter_base=_at(adapter_base) or object,
        capabilities=frozenset(capabilities),
        translate=translate,
        known_failures=read_known_failures(Path(known_failures)) if known_failures else (),
    )


def _at(path: str | None) -> Any:
    if path is None:
        return None
    module, _, names = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in filter(None, names.split(".")):
            found = getattr(found, name)
    # An import runs foreign code, which may raise anything.
    except Exception as error:
        raise pytest.UsageError(f"{path}: {type(error).__name__}: {error}") from error
    return found
