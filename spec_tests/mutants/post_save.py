# SPDX-License-Identifier: Apache-2.0
"""Faults in bringing metadata and weights out (spec/post_save.md)."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from spec_tests.harness.export import INDEX_MAPPING
from spec_tests.mutants.editing_whole import (
    change_copied_out,
    change_place,
    change_staged_files,
    on_publish_metadata,
    on_publish_whole,
    take_no_copy,
)
from spec_tests.mutants.registry import mutant


@mutant(kills=["POST-001"], also=("CODE", "TOK"), source="`os.listdir` and `os.path.isfile`")
def brings_out_the_top_level_alone(addons: Any) -> None:
    """Helpers of custom code, which lie deeper, stay in the staging."""
    change_staged_files(addons, lambda path: len(path.parts) == 1)


@mutant(kills=["POST-002"], source="`shutil.copytree` of the staging")
def brings_out_the_mapping(addons: Any) -> None:
    """An internal file lies in the published checkpoint."""

    def change(copy_out: Any, copy: Any) -> None:
        copy_out(copy)
        mapping = copy.hf_metadata_dir / INDEX_MAPPING
        if copy.consolidated_path is not None and mapping.is_file() and copy.consolidated_path != copy.hf_metadata_dir:
            shutil.copy(mapping, copy.consolidated_path)

    change_copied_out(addons, change)


@mutant(kills=["POST-003"], also=("HOOK", "RANK"), source="`Path(consolidated_path or '')`")
def takes_no_path_for_the_working_directory(addons: Any) -> None:
    """Saving shards alone leaves a config.json wherever the job was started."""
    change_copied_out(
        addons,
        lambda copy_out, copy: copy_out(dataclasses.replace(copy, consolidated_path=copy.consolidated_path or Path())),
    )


@mutant(kills=["POST-003"], also=("HOOK", "RANK"), source="`os.path.join(None, name)`")
def needs_a_consolidated_path(addons: Any) -> None:
    """Saving shards alone fails after the shards were written."""

    def change(copy_out: Any, copy: Any) -> None:
        if copy.consolidated_path is None:
            raise TypeError("consolidated_path is None")
        copy_out(copy)

    change_copied_out(addons, change)


@mutant(kills=["POST-004"], also=("HOOK", "RANK"), source="NVIDIA-NeMo/Automodel#2289: `shutil.move`")
def moves_the_metadata_out(addons: Any) -> None:
    """Consolidating the shards again, offline, finds no mapping and no config."""

    def change(copy_out: Any, copy: Any) -> None:
        copy_out(copy)
        if copy.consolidated_path not in (None, copy.hf_metadata_dir, *copy.hf_metadata_dir.parents):
            for path in copy.hf_metadata_dir.glob("*.json"):
                path.unlink()

    change_copied_out(addons, change)


@mutant(kills=["POST-005"], also=("TOK",), source="files written over, and nothing else")
def leaves_stale_metadata(addons: Any) -> None:
    """The chat template of an earlier tokenizer is read beside the new one."""
    on_publish_metadata(
        addons,
        lambda publish, source, destination, more: publish(source, destination, marker=more["marker"]),
    )


@mutant(kills=["POST-005"], also=("LOAD",), source="files written over, and nothing else")
def leaves_stale_weights(addons: Any) -> None:
    """A model.safetensors of an earlier save is read in place of the new index."""
    on_publish_whole(
        addons,
        lambda publish, source, destination, more: publish(source, destination, marker=more["marker"]),
    )


@mutant(kills=["POST-005"], also=("HOOK", "TOK", "ERR"), source="`shutil.rmtree(directory, ignore_errors=True)`")
def empties_the_directory_first(addons: Any) -> None:
    """Notes, logs and the handler of a server are gone."""

    def change(copy_out: Any, copy: Any) -> None:
        target = copy.consolidated_path
        for path in [] if target is None or not target.is_dir() else target.iterdir():
            if path.is_file() and target != copy.hf_metadata_dir and path.suffix != ".safetensors":
                path.unlink()
        copy_out(copy)

    change_copied_out(addons, change)


@mutant(kills=["POST-006"], also=("HOOK", "RANK", "IDX", "CODE", "ERR", "CFG"), source="the seed's callers")
def takes_the_callers_name_alone(addons: Any) -> None:
    """A caller that says `hf_metadata_dir`, as in pre_save, gets a TypeError."""
    _called_without(addons, "hf_metadata_dir")


@mutant(kills=["POST-006"], also=("HOOK", "RANK"), source="the seed's page")
def takes_the_pages_name_alone(addons: Any) -> None:
    """A caller that says `hf_metadata_path` gets a TypeError."""
    _called_without(addons, "hf_metadata_path")


def _called_without(package: Any, name: str) -> None:
    """`ConsolidatedHFAddon.post_save` does not know that keyword."""
    original = package.ConsolidatedHFAddon.post_save

    def post_save(self: Any, **kwargs: Any) -> None:
        original(self, **{key: value for key, value in kwargs.items() if key != name})

    package.ConsolidatedHFAddon.post_save = post_save


@mutant(kills=["POST-007"], also=("ERR",), source="files moved in the order of their names")
def publishes_the_config_before_the_weights(addons: Any) -> None:
    """A process killed between two moves leaves the new config beside the old weights."""

    def change(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        destination.mkdir(parents=True, exist_ok=True)
        if (source / more["marker"]).exists():
            (source / more["marker"]).replace(destination / more["marker"])
        publish(source, destination, marker="", replaces=[name for name in more["replaces"] if name != more["marker"]])

    on_publish_whole(addons, change)


@mutant(kills=["POST-008"], also=("ERR",), source="`async_save(...)`, then `post_save` at once")
def publishes_before_the_result(addons: Any) -> None:
    """Whoever watches the directory loads a model whose save was not yet waited for."""
    original = addons.save_consolidated

    def save_consolidated(*settings: Any, **more: Any) -> Any:
        pending = original(*settings, **more)
        if pending is None:
            return None
        pending.result()
        return SimpleNamespace(result=lambda: None)

    addons.save_consolidated = save_consolidated


@mutant(kills=["POST-009"], also=("HOOK",), source="`if os.path.isdir(hf_metadata_dir):`")
def takes_missing_metadata_for_none(addons: Any) -> None:
    """Weights are published without a config, since the caller mixed up two directories."""
    change_copied_out(addons, lambda copy_out, copy: copy_out(copy) if copy.hf_metadata_dir.is_dir() else None)


@mutant(kills=["POST-010"], also=("ERR",), source="`directory.parent / '.tmp'`")
def makes_every_save_in_one_place(addons: Any) -> None:
    """Of two saves at once the second takes the first one's files away."""
    change_place(addons, lambda place: place.with_name(".staging-save"))


@mutant(kills=["POST-011"], source="`executor.submit(save_file, model.state_dict(), path)`")
def writes_the_live_tensors_in_the_background(addons: Any) -> None:
    """The checkpoint is a mixture of the steps that were made while it was written."""
    take_no_copy(addons)
