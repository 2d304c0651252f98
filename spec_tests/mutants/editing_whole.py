# SPDX-License-Identifier: Apache-2.0
"""Where a mutant takes hold of a save: what ranks agree on, which tensors go where, how files come out; named seams.

With `editing` and `editing_content` the one place that knows the package's own names: what moves in there moves here,
and no mutant.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from spec_tests.mutants.editing import replace

ADAPTER, WHOLE = "adapter_config.json", "config.json"
"""The last file of a checkpoint of either kind."""
Change = Callable[..., Any]


def instead(package: Any, module: str, name: str, change: Change) -> None:
    """``change(original, ...)`` takes the place of a function of that module, wherever it was imported."""
    original = getattr(getattr(package, module), name)
    replace(package, original, lambda *settings, **more: change(original, *settings, **more))


def within(holder: Any, name: str, change: Change) -> None:
    """As `instead`, for the calls out of one module, or for the methods of one class."""
    original = getattr(holder, name)
    setattr(holder, name, lambda *settings, **more: change(original, *settings, **more))


# --- the hooks ---


def change_exporter(package: Any, change: Change) -> None:
    """``change(find, save)`` gives the model's own validated exporter, or None; ``find(save)`` is right."""
    within(package.hf_addon, "validated_exporter", change)


def change_metadata(package: Any, change: Change) -> None:
    """``change(write, save, exporter)`` takes the place of writing, on the rank that does; ``write()`` is right."""

    def changed(write: Any, save: Any, views: Any, exporter: Any) -> None:
        change(lambda: write(save, views, exporter), save, exporter)

    within(package.hf_addon, "_write", changed)


def change_form_asked(package: Any, change: Change) -> None:
    """``change(ask, exporter, v4_compatible)`` gives the keyword of the exporter's ``save``; ``ask`` is right."""
    instead(package, "hooks", "form_asked_of", change)


def change_generated(package: Any, **always: Any) -> None:
    """`_save_generated_hf_assets` is called with these keywords, whatever it is given."""

    def changed(generate: Any, *settings: Any, **more: Any) -> None:
        generate(*settings, **{**more, **always})

    instead(package, "seed_helpers", "_save_generated_hf_assets", changed)


def change_mappings(package: Any, change: Change) -> None:
    """``change(make, save)`` gives the internal files of the metadata, name -> content; ``make(save)`` is right."""
    instead(package, "hf_addon", "mapping_files", change)


def change_copied_out(package: Any, change: Change) -> None:
    """``change(copy_out, copy)`` takes the place of bringing the metadata out, on the rank that writes."""
    within(package.hf_addon, "_copy_out", change)


def change_staged_files(package: Any, choose: Callable[[Path], bool]) -> None:
    """Of the staged files only those that ``choose(relative_path)`` wants are brought out."""
    instead(package, "hf_addon", "staged_files", lambda original, *where: list(filter(choose, original(*where))))


def each_rank_alone(package: Any) -> None:
    """What a rank raises in a step of `ConsolidatedHFAddon` that all ranks do stays with that rank."""
    within(package.hf_addon, "everywhere", lambda _original, _group, step, *settings: step(*settings))


# --- files and directories ---


def change_staging(package: Any, change: Change) -> None:
    """``change(staging, directory)`` gives the place in which `PeftAddon` prepares files, as a context manager."""
    within(package.peft_addon, "staging", change)


def on_publish_by_hook(package: Any, change: Change) -> None:
    """``change(publish, source, destination, more)`` takes the place of the moves of `PeftAddon`."""
    _on_publish(package.peft_addon, change, ADAPTER)


def on_publish_metadata(package: Any, change: Change) -> None:
    """As `on_publish_by_hook`, for both hooks of `ConsolidatedHFAddon`."""
    _on_publish(package.hf_addon, change, WHOLE)


def on_publish_adapter(package: Any, change: Change) -> None:
    """As `on_publish_by_hook`, for `save_adapter`."""
    _on_publish(package.staged, change, ADAPTER)


def on_publish_whole(package: Any, change: Change) -> None:
    """As `on_publish_by_hook`, for `save_consolidated`."""
    _on_publish(package.staged, change, WHOLE)


def _on_publish(module: Any, change: Change, last: str) -> None:
    def changed(publish: Any, source: Path, destination: Path, marker: str, **more: Any) -> None:
        if marker == last:
            change(publish, source, destination, {"marker": marker, **more})
        else:
            publish(source, destination, marker=marker, **more)

    within(module, "publish", changed)


def change_place(package: Any, change: Callable[[Path], Path]) -> None:
    """A save is made in ``change(place)``, a directory beside its destination."""
    instead(package, "staging", "_beside", lambda original, destination: change(original(destination)))


def change_clean_up(package: Any, change: Change) -> None:
    """``change(remove, failed)`` takes the place of removing the directory in which a save was made."""
    kept = []  # which would be removed with the last name for it

    def changed(original: Any, staged: Any, *error: Any) -> None:
        kept.append(staged)
        change(lambda: original(staged, *error), error[0] is not None)

    within(package.staged.Staged, "__exit__", changed)


def change_header(package: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """``change(header)`` edits the header of each weights file of a whole model."""

    def changed(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        for path in source.glob("*.safetensors"):
            content = path.read_bytes()
            end = 8 + int.from_bytes(content[:8], "little")
            header = json.loads(content[8:end])
            change(header)
            text = json.dumps(header).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
        publish(source, destination, **more)

    on_publish_whole(package, changed)


# --- what ranks agree on ---


def leave_out_of_the_agreement(package: Any, setting: str) -> None:
    """Ranks may differ in a setting of `save_consolidated`."""

    def changed(original: Any, *of: Any, **settings: Any) -> Any:
        view = original(*of, **settings)
        return dataclasses.replace(view, settings=tuple(pair for pair in view.settings if pair[0] != setting))

    within(package.hf_addon, "model_view", changed)


def compare_no_tensors(package: Any) -> None:
    """A tensor has the shape and the dtype that the first rank says, whatever the others hold."""

    def changed(original: Any, contents: Any, compared: Any) -> Any:
        first: dict[str, Any] = {}
        said = []
        for ranks, held in contents:
            tensors = tuple(first.setdefault(one[0], one)[:3] + one[3:] for one in held.tensors)
            said.append((ranks, dataclasses.replace(held, tensors=tensors)))
        return original(said, compared)

    within(package.gathering, "_transfers", changed)


# --- tensors ---


def change_tensors(package: Any, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """The tensors of a whole model, detached and under native names, become ``change(tensors)``."""
    within(package.model_state, "whole_model", lambda original, parts: change(original(parts)))


def keep_native_names(package: Any) -> None:
    """A whole model is saved without its own conversion to Hugging Face names."""

    def changed(original: Any, native: dict[str, torch.Tensor], parts: Any, form: Any) -> Any:
        whole = not any(name.startswith("base_model.") for name in native)
        return native if whole else original(native, parts, form)

    within(package.model_state, "hf_tensors", changed)


def change_tied_again(package: Any, patterns: list[str]) -> None:
    """Of shared tensors those that match a pattern are taken for tied again on loading."""
    instead(package, "model_state", "_tied_again", lambda _original, _model: patterns)


def change_cast(package: Any, change: Change) -> None:
    """``change(tensor, dtype)`` gives the dtype of a tensor in the file, where the caller asked for ``dtype``."""
    instead(package, "holdings", "saved_dtype", lambda _original, tensor, dtype: change(tensor, dtype))


def change_dtype_names(package: Any, change: Change) -> None:
    """``change(name, dtype)`` gives what a weights file calls a dtype; ``name()`` does, or refuses."""
    instead(
        package,
        "weights",
        "safetensors_dtype",
        lambda original, dtype, tensor: change(lambda: original(dtype, tensor), dtype),
    )


def take_no_copy(package: Any) -> None:
    """An asynchronous save reads the live tensors while it writes."""
    package.weights._same_memory = lambda _tensor, _live: False


# --- weights files and their index ---


def change_cut(package: Any, cut: Callable[[dict[str, int], int], dict[str, int]]) -> None:
    """``cut(sizes, max_shard_bytes)`` gives the number of each tensor's file, from 1."""
    instead(package, "weights", "file_indices", lambda _original, sizes, most: cut(sizes, most))


def change_index(package: Any, change: Change) -> None:
    """``change(index, sizes)`` edits the index; ``sizes`` has the bytes of the live tensors by their names."""
    sizes: dict[str, int] = {}

    def noted(original: Any, tensors: Mapping[str, torch.Tensor], *settings: Any) -> Any:
        sizes.clear()
        sizes.update({name: one.numel() * one.element_size() for name, one in tensors.items()})
        return original(tensors, *settings)

    def changed(original: Any, layout: Any) -> dict[str, Any]:
        index: dict[str, Any] = original(layout)
        change(index, sizes)
        return index

    within(package.save, "holdings", noted)
    within(package.weights.Layout, "index", changed)
