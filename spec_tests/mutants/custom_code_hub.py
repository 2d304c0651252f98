# SPDX-License-Identifier: Apache-2.0
"""Faults in finding the code of a model through the model (spec/custom_code.md)."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

from spec_tests.mutants.editing_content import change_code, change_hub_folder
from spec_tests.mutants.registry import mutant


@mutant(kills=["CODE-009"], source="NVIDIA-NeMo/Automodel before 0.7: every model's code copied")
def copies_the_code_of_stock_models(addons: Any) -> None:
    """Transformers runs the training code, which the server lacks packages for, in place of its own."""
    change_code(addons, lambda copy, source, destination, _model: copy(source, destination, None))


@mutant(kills=["CODE-009"], source="`getattr(model_state.model[0], '_export_as_stock_model', False)`")
def asks_the_wrapper_whether_it_is_stock(addons: Any) -> None:
    """A model in activation checkpointing or DDP comes with its training code, the bare one without."""

    def change(copy: Any, source: Any, destination: Path, model: Any) -> None:
        marked = "_export_as_stock_model" in vars(type(model)) or "_export_as_stock_model" in vars(model)
        copy(source, destination, model if marked else None)

    change_code(addons, change)


@mutant(kills=["CODE-008"], source="NVIDIA-NeMo/Automodel#1973")
def looks_for_code_in_local_folders_alone(addons: Any) -> None:
    """A model that came from the hub is saved without its code."""
    change_hub_folder(addons, lambda _find, _model: None)


@mutant(kills=["CODE-008"], source="`type(model).__module__`")
def takes_the_class_in_front_for_the_models(addons: Any) -> None:
    """Sharded by FSDP2, a model is saved without its code."""
    remote = "transformers_modules."
    change_hub_folder(addons, lambda find, model: find(model) if type(model).__module__.startswith(remote) else None)


@mutant(kills=["CODE-008"], source="NVIDIA-NeMo/Automodel: `getattr(model_part, ...)` of the wrapper")
def asks_the_wrapper_for_its_class(addons: Any) -> None:
    """In activation checkpointing, a model is saved without its code."""

    def change(copy: Any, source: Any, destination: Path, model: Any) -> None:
        remote = any(base.__module__.startswith("transformers_modules.") for base in type(model).__mro__)
        copy(source, destination, model if remote else None)

    change_code(addons, change)


@mutant(kills=["CODE-008"], source="`'transformers_modules' in cls.__module__`")
def takes_any_module_of_a_like_name_for_the_hubs(addons: Any) -> None:
    """The folder of a trainer's own package is published."""

    def like(_find: Any, model: Any) -> Path | None:
        found = (base for base in type(model).__mro__ if "transformers_modules" in base.__module__)
        return next((Path(inspect.getfile(base)).parent for base in found), None)

    change_hub_folder(addons, like)


@mutant(kills=["CODE-008"], source="`shutil.copytree` of the cache's folder")
def copies_the_packages_that_transformers_makes(addons: Any) -> None:
    """Beside the model lies an `__init__.py` that no repository has."""
    folders: list[Path | None] = []

    def find(original: Any, model: Any) -> Path | None:
        folders[:] = [original(model)]
        return folders[0]

    def change(copy: Any, source: Any, destination: Path, model: Any) -> None:
        folders[:] = []
        copy(source, destination, model)
        for folder in folders:
            if folder is not None and any(destination.glob("modeling_tiny*.py")):
                shutil.copyfile(folder / "__init__.py", destination / "__init__.py")

    change_hub_folder(addons, find)
    change_code(addons, change)


@mutant(kills=["CODE-008"], source="NVIDIA-NeMo/Automodel: `os.path.dirname` of each class that `auto_map` names")
def copies_the_folder_of_every_reference(addons: Any) -> None:
    """A file of a subfolder lies beside the model, where one of the same name may be meant."""

    def change(copy: Any, source: Any, destination: Path, model: Any) -> None:
        copy(source, destination, model)
        references = getattr(getattr(model, "config", None), "auto_map", None) or {}
        for reference in references.values():
            module = str(reference).rpartition(".")[0].replace(".", "/")
            for path in (destination / module).parent.glob("*.py"):
                if not (destination / path.name).exists():
                    shutil.copyfile(path, destination / path.name)

    change_code(addons, change)
