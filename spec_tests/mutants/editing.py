# SPDX-License-Identifier: Apache-2.0
"""How a mutant changes its private copy of the package: as if a function in the source were another."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def held(package: ModuleType, name: str) -> Any:
    """What the package calls by that name, in whatever module it stands.

    Raises:
        LookupError: nothing is called so.
    """
    for module in _modules(package):
        found = vars(module).get(name)
        if found is not None and not isinstance(found, ModuleType):
            return found
    raise LookupError(f"nothing in {package.__name__} is called {name}")


def replace(package: ModuleType, original: Any, broken: Any) -> None:
    """Put ``broken`` wherever a module of the package holds ``original``, under whatever name it imported it.

    Raises:
        LookupError: no module holds it, so that the mutant would be no mutant.
    """
    found = False
    for module in _modules(package):
        for attribute, value in list(vars(module).items()):
            if value is original:
                setattr(module, attribute, broken)
                found = True
    if not found:
        raise LookupError(f"{original!r} is nowhere in {package.__name__}")


def _modules(package: ModuleType) -> list[ModuleType]:
    prefix = f"{package.__name__}."
    return [package, *(module for name, module in sorted(sys.modules.items()) if name.startswith(prefix))]


def change_config(package: Any, change: Callable[..., None]) -> None:
    """``change(config, model, found)`` edits the dict of adapter_config.json before anybody sees it."""
    original = held(package, "adapter_config")

    @functools.wraps(original)
    def broken(peft_config: Any, model: Any, found: Any) -> dict[str, Any]:
        config = original(peft_config, model, found)
        change(config, model, found)
        return config

    replace(package, original, broken)


def change_names(package: Any, change: Callable[[str], Any]) -> None:
    """Every name in ``target_modules`` becomes ``change(name)``: another name, or a list of names."""

    def changed(config: dict[str, Any], _model: Any, _found: Any) -> None:
        names: set[str] = set()
        for name in config["target_modules"]:
            made = change(name)
            names |= {made} if isinstance(made, str) else set(made)
        config["target_modules"] = sorted(names)

    change_config(package, changed)


def change_metadata(package: Any, change: Callable[..., None]) -> None:
    """``change(content, peft_config)`` edits the dict of automodel_peft_config.json."""
    original = held(package, "_get_automodel_peft_metadata")

    def broken(peft_config: Any) -> dict[str, Any]:
        content = original(peft_config)
        change(content, peft_config)
        return content

    replace(package, original, broken)


def change_tensors(package: Any, change: Callable[[dict[str, Any], Any], dict[str, Any]]) -> None:
    """The adapter's state dict becomes ``change(state_dict, model_state)``."""
    model_state = package.ModelState
    original = model_state.state_dict
    model_state.state_dict = lambda self: change(original(self), self)


def before_saving(package: Any, step: Callable[[dict[str, Any]], None]) -> None:
    """``step(kwargs)`` runs on every rank before `PeftAddon.pre_save` does its work."""
    original = package.PeftAddon.pre_save

    def pre_save(self: Any, **kwargs: Any) -> None:
        step(kwargs)
        original(self, **kwargs)

    package.PeftAddon.pre_save = pre_save


def after_saving(package: Any, step: Callable[[dict[str, Any]], None]) -> None:
    """``step(kwargs)`` runs on every rank after `PeftAddon.pre_save` has done its work."""
    original = package.PeftAddon.pre_save

    def pre_save(self: Any, **kwargs: Any) -> None:
        original(self, **kwargs)
        step(kwargs)

    package.PeftAddon.pre_save = pre_save


def also_written(package: Any, write: Callable[..., None]) -> None:
    """``write(directory, save)`` puts further files into what is about to be published."""
    original = package.adapter_metadata.publish
    writing = package.adapter_metadata.write
    current: list[Any] = []

    def remembering(save: Any, views: Any) -> None:
        current[:] = [save]
        writing(save, views)

    def publish(source: Any, destination: Any, **more: Any) -> None:
        write(source, current[0])
        original(source, destination, **more)

    package.adapter_metadata.publish = publish
    package.adapter_metadata.write = remembering


def change_live(package: Any, change: Callable[[dict[str, Any], Any], None]) -> None:
    """``change(content, model)`` edits the dict that the live config becomes."""
    original = held(package, "config_content")

    def broken(model: Any, *settings: Any) -> Any:
        content = original(model, *settings)
        if content is not None:
            change(content, model)
        return content

    replace(package, original, broken)


def change_files(package: Any, change: Callable[..., dict[str, Any]]) -> None:
    """``change(make, save)`` takes the place of the step that works out which file has which content."""
    original = held(package, "json_files")

    def broken(save: Any, *settings: Any) -> dict[str, Any]:
        return change(lambda one: original(one, *settings), save)

    replace(package, original, broken)


def change_publish(module: Any, change: Callable[..., None]) -> None:
    """``change(publish, source, destination, more)`` takes the place of the moves that one module makes."""
    original = module.publish
    module.publish = lambda source, destination, **more: change(original, source, destination, more)
