# SPDX-License-Identifier: Apache-2.0
"""Faults in the mappings and the index of weights files (spec/index.md)."""

from __future__ import annotations

import dataclasses
import glob
import shutil
from pathlib import Path
from typing import Any

from spec_tests.harness.export import INDEX_MAPPING
from spec_tests.mutants.editing_whole import (
    change_copied_out,
    change_cut,
    change_mappings,
    change_tied_again,
    on_publish_metadata,
    on_publish_whole,
)
from spec_tests.mutants.registry import mutant

_DTYPES = "fqn_to_dtype_mapping.json"


@mutant(kills=["IDX-006"], source="a keyword that nobody passes on")
def ignores_the_dtype_mapping(addons: Any) -> None:
    """Offline consolidation leaves weights in the dtype they were trained in."""
    change_mappings(addons, lambda make, save: make(dataclasses.replace(save, fqn_to_dtype_mapping=None)))


@mutant(kills=["IDX-006"], also=("POST",), source="`if fqn_to_dtype_mapping is not None:`")
def writes_an_empty_dtype_mapping(addons: Any) -> None:
    """Offline consolidation finds a mapping that has none of its names."""

    def change(make: Any, save: Any) -> dict[str, Any]:
        given = save.fqn_to_dtype_mapping
        return {**make(save), **({} if given is None else {_DTYPES: given})}

    change_mappings(addons, change)


@mutant(kills=["IDX-006"], also=("POST",), source="one internal file known, of two")
def brings_out_the_dtype_mapping(addons: Any) -> None:
    """An internal file lies in the published checkpoint."""

    def change(copy_out: Any, copy: Any) -> None:
        copy_out(copy)
        if copy.consolidated_path is not None and (copy.hf_metadata_dir / _DTYPES).is_file():
            shutil.copyfile(copy.hf_metadata_dir / _DTYPES, copy.consolidated_path / _DTYPES)

    change_copied_out(addons, change)


@mutant(kills=["IDX-006"], source="`write` where there is one, and nothing else")
def leaves_a_stale_dtype_mapping(addons: Any) -> None:
    """Weights are cast to what those of an earlier save were."""

    def change(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        publish(source, destination, **{**more, "replaces": [one for one in more["replaces"] if one != _DTYPES]})

    on_publish_metadata(addons, change)


@mutant(kills=["IDX-001"], also=("ERR", "POST"), source="`rsync --size-only`; shards in a directory that stays")
def keeps_files_of_the_same_name_and_size(addons: Any) -> None:
    """After a save over an earlier one the weights are the old ones, without an error."""

    def change(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        for path in source.glob("*.safetensors"):
            earlier = destination / path.name
            if earlier.exists() and earlier.stat().st_size == path.stat().st_size:
                shutil.copyfile(earlier, path)
        publish(source, destination, **more)

    on_publish_whole(addons, change)


@mutant(kills=["IDX-002"], source="`enumerate(names)`")
def numbers_files_from_zero(addons: Any) -> None:
    """Offline consolidation looks for files from 1."""

    def change(make: Any, save: Any) -> dict[str, Any]:
        lower = {name: at - 1 for name, at in (save.fqn_to_file_index_mapping or {}).items()}
        return {name: lower if name == INDEX_MAPPING else content for name, content in make(save).items()}

    change_mappings(addons, change)


@mutant(kills=["IDX-003"], source="a file closed once it is full")
def closes_a_file_after_it_is_full(addons: Any) -> None:
    """Files outgrow the size that the file system, or the hub, allows."""

    def broken(sizes: dict[str, int], most: int) -> dict[str, int]:
        indices, index, filled = {}, 1, 0
        for name in sorted(sizes):
            indices[name], filled = index, filled + sizes[name]
            if filled >= most:
                index, filled = index + 1, 0
        return indices

    change_cut(addons, broken)


@mutant(kills=["IDX-003"], also=("POST", "CODE"), source="the index taken for metadata of the shards")
def leaves_the_index_behind(addons: Any) -> None:
    """Readers open only what the index names, and there is none."""

    def change(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        (source / "model.safetensors.index.json").unlink()
        publish(source, destination, **more)

    on_publish_whole(addons, change)


@mutant(kills=["IDX-004"], source="`state_dict()` as it is")
def saves_tied_weights_twice(addons: Any) -> None:
    """The embedding is in the files under two names."""
    change_tied_again(addons, [])


@mutant(kills=["IDX-004"], source="safetensors: `save_model` drops whatever shares memory")
def saves_shared_memory_once(addons: Any) -> None:
    """A weight that was tied by hand is random after loading."""
    change_tied_again(addons, [""])


@mutant(kills=["IDX-005"], also=("CODE",), source="torch 2.13: `consolidate_safetensors_files`")
def looks_for_weights_by_a_pattern(addons: Any) -> None:
    """In a directory called `lr=[0.1]` there is a config, and no weights file."""

    def change(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        found = glob.glob(f"{source}/*.safetensors")  # noqa: PTH207
        for path in source.glob("*.safetensors"):
            if str(path) not in found:
                path.unlink()
        publish(source, destination, **more)

    on_publish_whole(addons, change)
