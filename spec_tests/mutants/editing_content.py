# SPDX-License-Identifier: Apache-2.0
"""Where a mutant takes hold of what is written beside the weights: configs and code, by named seams.

With `editing` and `editing_whole` the one place that knows the package's own names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from spec_tests.mutants.editing import replace
from spec_tests.mutants.editing_whole import instead, within

Change = Callable[..., Any]


# --- the contents of config.json and generation_config.json ---


def change_content(package: Any, change: Change) -> None:
    """``change(make, model)`` gives what the live config becomes, a dict or None; ``make()`` is right."""
    instead(
        package, "hf_config", "config_content", lambda make, model, *said: change(lambda: make(model, *said), model)
    )


def change_live(package: Any, change: Change) -> None:
    """``change(content, model)`` edits the dict that the live config becomes."""

    def changed(make: Any, model: Any) -> Any:
        content = make()
        if content is not None:
            change(content, model)
        return content

    change_content(package, changed)


def change_generation(package: Any, change: Change) -> None:
    """The content of the generation config, None without one, becomes ``change(content, model)``."""
    instead(package, "hf_config", "generation_content", lambda make, model: change(make(model), model))


def change_original(package: Any, change: Change) -> None:
    """``change(read, path)`` gives the content of a file of the original model.

    ``read()`` is right; it takes ``live`` (the content whose quantisation settings it gets) and ``tied``.
    """

    def changed(original: Any, path: Any, name: str, live: Any, dtype: Any, tied: Any = None) -> Any:
        right = {"live": live, "dtype": dtype, "tied": tied}
        return change(lambda **other: original(path, name, **{**right, **other}), Path(path, name))

    instead(package, "hf_config", "original_content", changed)


def change_files(package: Any, change: Change) -> None:
    """``change(make, save)`` takes the place of the step that works out which file has which content."""
    instead(package, "hf_addon", "json_files", lambda make, save, views: change(lambda one: make(one, views), save))


def change_said(package: Any, change: Change) -> None:
    """``change(say, tied)`` gives a config's content as the saved tensors are.

    ``say()`` is right; it takes ``dtype`` and ``tied``, and None for what is to stay as it is.
    """

    def changed(original: Any, content: Any, dtype: Any, tied: Any) -> Any:
        right = {"dtype": dtype, "tied": tied}
        return change(lambda **other: original(content, **{**right, **other}), tied)

    instead(package, "hf_config", "with_tensors", changed)


def change_saved_dtype(package: Any, change: Change) -> None:
    """``change(name, save)`` gives the dtype that the config is to say, in keywords ``save``; ``name(save)`` does."""
    instead(package, "hf_addon", "saved_dtype", lambda name, save, views: change(lambda one: name(one, views), save))


def change_counted_dtypes(package: Any, count: Callable[[list[torch.Tensor]], Any]) -> None:
    """``count(tensors)`` counts the elements of each dtype, by its short name."""
    instead(package, "hf_config", "floating_dtypes", lambda _original, parts: count(_tensors(parts)))


def change_plain(package: Any, change: Change) -> None:
    """``change(plain, value, where)`` gives the JSON form of a value of a config."""

    def changed(plain: Any, value: Any, where: str, *forms: Any) -> Any:
        return change(lambda: plain(value, where, *forms), value, where)

    within(package.hf_config, "json_safe", changed)


def change_odd_numbers(package: Any, change: Change) -> None:
    """``change(value)`` gives the JSON form of infinity and NaN."""
    instead(package, "hf_config", "_tagged", lambda _original, value, _where: change(value))


def change_check_of_shapes(package: Any, check: Change) -> None:
    """``check(right, original, live)`` compares two contents of config.json; ``right()`` does."""

    def changed(right: Any, config: Any, original: Any, live: Any) -> None:
        check(lambda: right(config, original, live), original, live)

    instead(package, "hf_config", "check_shapes", changed)


def change_check_of_layers(package: Any, check: Change) -> None:
    """``check(right, content, names)`` looks for missing layers; ``right(content)`` does, whatever the content says."""

    def changed(right: Any, model: Any, content: Any, names: Iterable[str]) -> None:
        known = list(names)
        check(lambda said: right(model, said, known), content, known)

    instead(package, "hf_config", "check_layers", changed)


# --- what is quantised ---


def change_quantised(package: Any, judge: Change) -> None:
    """``judge(right, tensors)`` says whether parameters and persistent buffers are quantised; ``right()`` does."""

    def changed(right: Any, parts: Iterable[Any]) -> bool:
        known = list(parts)
        return bool(judge(lambda: right(known), _tensors(known)))

    instead(package, "hf_config", "holds_quantised", changed)


def change_stripping(package: Any, strip: Callable[[Any], None], clean: Change) -> None:
    """Change what takes quantisation settings away.

    Args:
        package: the copy.
        strip: ``strip(config)`` does so with a config object.
        clean: ``clean(keep, content, quantised)`` gives a content without them, unless it is quantised; ``keep()`` has
            them all.
    """
    instead(package, "hf_config", "strip_quantisation", lambda _original, config: strip(config))
    instead(
        package,
        "hf_config",
        "_cleaned",
        lambda original, content, quantised: clean(lambda: original(content, True), content, quantised),
    )


def _tensors(parts: Iterable[Any]) -> list[torch.Tensor]:
    return [tensor for part in parts for _, tensor in part.tensors()]


# --- the model's code ---


def change_code(package: Any, change: Change) -> None:
    """``change(copy, source, destination, model)`` takes the place of ``copy(source, destination, model)``.

    ``model`` comes in the wrappers in which it was passed, and the copying looks inside.
    """
    inside = package.modules.unwrapped
    passed: dict[int, tuple[Any, Any]] = {}

    def noted(_original: Any, module: Any) -> Any:
        inner = inside(module)
        passed[id(inner)] = module, inner
        return inner

    def changed(original: Any, source: Any, destination: Path, model: Any) -> None:
        def copy(source: Any, destination: Path, model: Any) -> None:
            original(source, destination, None if model is None else inside(model))

        change(copy, source, destination, passed.get(id(model), (model, model))[0])

    instead(package, "modules", "unwrapped", noted)
    instead(package, "companions", "save_model_code", changed)


def change_own_code(package: Any, change: Change) -> None:
    """``change(own, folder, destination)`` gives the files of a folder that are copied; ``own(...)`` is right."""
    instead(package, "companions", "own_code", change)


def change_belongs(package: Any, change: Change) -> None:
    """``change(belongs, path, folder)`` says whether a path is a file of that folder."""
    instead(package, "companions", "_belongs", change)


def change_copied_code(package: Any, copy: Callable[[Path, Path], None]) -> None:
    """``copy(source, target)`` takes the place of copying one file of code."""

    def changed(_original: Any, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        copy(source, target)

    instead(package, "companions", "copy_guarded", changed)


def change_hub_folder(package: Any, change: Change) -> None:
    """``change(find, model)`` gives the folder of code from the hub, None without one; ``find(model)`` is right."""
    instead(package, "companions", "hub_folder", change)


def change_references(package: Any, change: Change) -> None:
    """``change(local, content)`` gives a JSON content with references to the code that travels; ``local()`` does."""
    instead(
        package,
        "companions",
        "with_local_references",
        lambda local, content, directory: change(lambda: local(content, directory), content),
    )


def change_warning(package: Any, warn: Change) -> None:
    """``warn(said)`` takes the place of a warning about missing code."""
    package.companions.warnings = SimpleNamespace(warn=lambda said, **_more: warn(said))


def change_guarded(package: Any, change: Change) -> None:
    """``change(guarded, source)`` takes the place of guarding the text of a file."""
    instead(package, "compat_guards", "guarded", change)


def change_fallbacks(package: Any, fallback: str) -> None:
    """Every removed symbol is replaced by what this expression gives."""
    removed = package.compat_guards.REMOVED
    replace(package, removed, {name: (modules, fallback) for name, (modules, _) in removed.items()})


def change_answered(package: Any, answered: Callable[[Any], bool]) -> None:
    """``answered(handler)`` says whether an ``except`` is an answer to a missing symbol."""
    instead(package, "compat_guards", "_catches", lambda _original, handler, _missing: answered(handler))


def change_masks(package: Any, change: Callable[[str], str]) -> None:
    """``change(guard)`` takes the place of the guard against the missing module of masks."""
    instead(package, "compat_guards", "_masks", lambda masks: change(masks()))
