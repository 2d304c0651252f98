# SPDX-License-Identifier: Apache-2.0
"""Faults in bringing metadata and weights out (spec/post_save.md)."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spec_tests.mutants.editing import change_publish, held, replace
from spec_tests.mutants.registry import mutant


def _change_out(package: Any, change: Callable[..., None]) -> None:
    """``change(copy_out, copy)`` takes the place of copying the metadata out, on the rank that writes."""
    original = package.hf_metadata.copy_out
    package.hf_metadata.copy_out = lambda copy: change(original, copy)


@mutant(kills=["POST-001"], also=("CODE", "TOK"), source="`os.listdir` and `os.path.isfile`")
def brings_out_the_top_level_alone(addons: Any) -> None:
    """Helpers of custom code, which lie deeper, stay in the staging."""
    original = held(addons, "staged_files")
    replace(addons, original, lambda *where: [path for path in original(*where) if len(path.parts) == 1])


@mutant(kills=["POST-002"], source="`shutil.copytree` of the staging")
def brings_out_the_mapping(addons: Any) -> None:
    """An internal file lies in the published checkpoint."""

    def change(copy_out: Any, copy: Any) -> None:
        copy_out(copy)
        mapping = copy.hf_metadata_dir / held(addons, "INDEX_MAPPING")
        if copy.consolidated_path is not None and mapping.is_file() and copy.consolidated_path != copy.hf_metadata_dir:
            shutil.copy(mapping, copy.consolidated_path)

    _change_out(addons, change)


@mutant(kills=["POST-003"], also=("HOOK", "RANK"), source="`Path(consolidated_path or '')`")
def takes_no_path_for_the_working_directory(addons: Any) -> None:
    """Saving shards alone leaves a config.json wherever the job was started."""
    _change_out(
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

    _change_out(addons, change)


@mutant(kills=["POST-004"], also=("HOOK", "RANK"), source="NVIDIA-NeMo/Automodel#2289: `shutil.move`")
def moves_the_metadata_out(addons: Any) -> None:
    """Consolidating the shards again, offline, finds no mapping and no config."""

    def change(copy_out: Any, copy: Any) -> None:
        copy_out(copy)
        if copy.consolidated_path not in (None, copy.hf_metadata_dir, *copy.hf_metadata_dir.parents):
            for path in copy.hf_metadata_dir.glob("*.json"):
                path.unlink()

    _change_out(addons, change)


@mutant(kills=["POST-005"], also=("TOK",), source="files written over, and nothing else")
def leaves_stale_metadata(addons: Any) -> None:
    """The chat template of an earlier tokenizer is read beside the new one."""
    change_publish(
        addons.hf_metadata,
        lambda publish, source, destination, more: publish(source, destination, marker=more["marker"]),
    )


@mutant(kills=["POST-005"], also=("LOAD",), source="files written over, and nothing else")
def leaves_stale_weights(addons: Any) -> None:
    """A model.safetensors of an earlier save is read in place of the new index."""
    change_publish(
        addons.consolidated,
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

    _change_out(addons, change)


@mutant(kills=["POST-006"], also=("HOOK", "RANK", "IDX", "CODE", "ERR", "CFG"), source="the seed's callers")
def takes_the_callers_name_alone(addons: Any) -> None:
    """A caller that says `hf_metadata_dir`, as in pre_save, gets a TypeError."""
    original = held(addons, "metadata_copy")
    replace(addons, original, lambda kwargs: original({**kwargs, "hf_metadata_dir": None}))


@mutant(kills=["POST-006"], also=("HOOK", "RANK"), source="the seed's page")
def takes_the_pages_name_alone(addons: Any) -> None:
    """A caller that says `hf_metadata_path` gets a TypeError."""
    original = held(addons, "metadata_copy")
    replace(addons, original, lambda kwargs: original({**kwargs, "hf_metadata_path": None}))


@mutant(kills=["POST-007"], also=("ERR",), source="files moved in the order of their names")
def publishes_the_config_before_the_weights(addons: Any) -> None:
    """A process killed between two moves leaves the new config beside the old weights."""

    def change(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        destination.mkdir(parents=True, exist_ok=True)
        if (source / more["marker"]).exists():
            (source / more["marker"]).replace(destination / more["marker"])
        publish(source, destination, marker="", replaces=[name for name in more["replaces"] if name != more["marker"]])

    change_publish(addons.consolidated, change)


@mutant(kills=["POST-008"], also=("ERR",), source="`async_save(...)`, then `post_save` at once")
def publishes_before_the_result(addons: Any) -> None:
    """Whoever watches the directory loads a model whose save was not yet waited for."""
    pending = addons.consolidated.PendingSave

    class Hasty(pending):  # type: ignore[misc, valid-type]
        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            pending.result(self)

        def result(self) -> None:
            pass

    replace(addons, pending, Hasty)


@mutant(kills=["POST-009"], also=("HOOK",), source="`if os.path.isdir(hf_metadata_dir):`")
def takes_missing_metadata_for_none(addons: Any) -> None:
    """Weights are published without a config, since the caller mixed up two directories."""
    _change_out(addons, lambda copy_out, copy: copy_out(copy) if copy.hf_metadata_dir.is_dir() else None)
