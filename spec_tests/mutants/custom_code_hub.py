# SPDX-License-Identifier: Apache-2.0
"""Faults in finding the code of a model through the model (spec/custom_code.md)."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

from spec_tests.mutants.editing import held, replace
from spec_tests.mutants.registry import mutant


@mutant(kills=["CODE-009"], source="NVIDIA-NeMo/Automodel before 0.7: every model's code copied")
def copies_the_code_of_stock_models(addons: Any) -> None:
    """Transformers runs the training code, which the server lacks packages for, in place of its own."""
    original = held(addons, "_maybe_save_custom_model_code")
    replace(addons, original, lambda source, destination, _model=None: original(source, destination))


@mutant(kills=["CODE-009"], source="`getattr(model_state.model[0], '_export_as_stock_model', False)`")
def asks_the_wrapper_whether_it_is_stock(addons: Any) -> None:
    """A model in activation checkpointing or DDP comes with its training code, the bare one without."""
    original = held(addons, "_maybe_save_custom_model_code")

    def broken(source: Any, destination: Any, model: Any = None) -> None:
        marked = "_export_as_stock_model" in vars(type(model)) or "_export_as_stock_model" in vars(model)
        original(source, destination, model if marked else None)

    replace(addons, original, broken)


@mutant(kills=["CODE-008"], source="NVIDIA-NeMo/Automodel#1973")
def looks_for_code_in_local_folders_alone(addons: Any) -> None:
    """A model that came from the hub is saved without its code."""
    replace(addons, held(addons, "hub_folder"), lambda _model: None)


@mutant(kills=["CODE-008"], source="`type(model).__module__`")
def takes_the_class_in_front_for_the_models(addons: Any) -> None:
    """Sharded by FSDP2, a model is saved without its code."""
    original = held(addons, "hub_folder")
    remote = "transformers_modules."
    replace(addons, original, lambda model: original(model) if type(model).__module__.startswith(remote) else None)


@mutant(kills=["CODE-008"], source="NVIDIA-NeMo/Automodel: `getattr(model_part, ...)` of the wrapper")
def asks_the_wrapper_for_its_class(addons: Any) -> None:
    """In activation checkpointing, a model is saved without its code."""
    original = held(addons, "_maybe_save_custom_model_code")
    unwrapped = held(addons, "unwrapped")

    def broken(source: Any, destination: Any, model: Any = None) -> None:
        original(source, destination, model if model is None or unwrapped(model) is model else None)

    replace(addons, original, broken)


@mutant(kills=["CODE-008"], source="`'transformers_modules' in cls.__module__`")
def takes_any_module_of_a_like_name_for_the_hubs(addons: Any) -> None:
    """The folder of a trainer's own package is published."""

    def like(model: Any) -> Path | None:
        found = (base for base in type(model).__mro__ if "transformers_modules" in base.__module__)
        return next((Path(inspect.getfile(base)).parent for base in found), None)

    replace(addons, held(addons, "hub_folder"), like)


@mutant(kills=["CODE-008"], source="`shutil.copytree` of the cache's folder")
def copies_the_packages_that_transformers_makes(addons: Any) -> None:
    """Beside the model lies an `__init__.py` that no repository has."""
    folder_of, original = held(addons, "hub_folder"), held(addons, "_maybe_save_custom_model_code")

    def broken(source: Any, destination: Any, model: Any = None) -> None:
        original(source, destination, model)
        folder = folder_of(model)
        if folder is not None and any(Path(destination).glob("modeling_tiny*.py")):
            shutil.copyfile(folder / "__init__.py", Path(destination) / "__init__.py")

    replace(addons, original, broken)
