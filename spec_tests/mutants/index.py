# SPDX-License-Identifier: Apache-2.0
"""Faults in the mappings and the index of weights files (spec/index.md)."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from spec_tests.mutants.editing import change_publish, held, replace
from spec_tests.mutants.registry import mutant


@mutant(kills=["IDX-006"], source="a keyword that nobody passes on")
def ignores_the_dtype_mapping(addons: Any) -> None:
    """Offline consolidation leaves weights in the dtype they were trained in."""
    original = held(addons, "mapping_files")
    replace(addons, original, lambda save: original(dataclasses.replace(save, fqn_to_dtype_mapping=None)))


@mutant(kills=["IDX-006"], also=("POST",), source="`if fqn_to_dtype_mapping is not None:`")
def writes_an_empty_dtype_mapping(addons: Any) -> None:
    """Offline consolidation finds a mapping that has none of its names."""
    original, name = held(addons, "mapping_files"), held(addons, "DTYPE_MAPPING")

    def broken(save: Any) -> dict[str, Any]:
        given = save.fqn_to_dtype_mapping
        return {**original(save), **({} if given is None else {name: given})}

    replace(addons, original, broken)


@mutant(kills=["IDX-006"], also=("POST",), source="one internal file known, of two")
def brings_out_the_dtype_mapping(addons: Any) -> None:
    """An internal file lies in the published checkpoint."""
    original, name = addons.hf_metadata.copy_out, held(addons, "DTYPE_MAPPING")

    def broken(copy: Any) -> None:
        original(copy)
        if copy.consolidated_path is not None and (copy.hf_metadata_dir / name).is_file():
            shutil.copyfile(copy.hf_metadata_dir / name, copy.consolidated_path / name)

    addons.hf_metadata.copy_out = broken


@mutant(kills=["IDX-006"], source="`write` where there is one, and nothing else")
def leaves_a_stale_dtype_mapping(addons: Any) -> None:
    """Weights are cast to what those of an earlier save were."""
    original, name = held(addons, "publish"), held(addons, "DTYPE_MAPPING")

    def broken(*where: Any, replaces: Any = (), **more: Any) -> None:
        original(*where, replaces=[one for one in replaces if one != name], **more)

    replace(addons, original, broken)


@mutant(kills=["IDX-001"], also=("ERR", "POST"), source="NVIDIA-NeMo/Automodel: shards in a directory that stays")
def keeps_the_shards_of_the_last_save(addons: Any) -> None:
    """After a save by fewer ranks most weights are the old ones, without an error."""

    def change(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        kept = source.parent / "kept"
        (source / "sharded").rename(kept)
        publish(source, destination, **more)
        kept.rename(source / "sharded")

    change_publish(addons.consolidated, change)
    addons.consolidated.remove_tree = lambda _path: None
    addons.consolidated.prepare_staging = lambda _destination, place: place.mkdir(parents=True, exist_ok=True)


@mutant(kills=["IDX-002"], source="`enumerate(names)`")
def numbers_files_from_zero(addons: Any) -> None:
    """Offline consolidation looks for files from 1."""
    original = held(addons, "mapping_files")

    def broken(*settings: Any) -> dict[str, Any]:
        name, files = held(addons, "INDEX_MAPPING"), original(*settings)
        return {key: {one: at - 1 for one, at in it.items()} if key == name else it for key, it in files.items()}

    replace(addons, original, broken)


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

    replace(addons, held(addons, "file_indices"), broken)


@mutant(kills=["IDX-003"], also=("POST", "CODE"), source="the index taken for metadata of the shards")
def leaves_the_index_behind(addons: Any) -> None:
    """Readers open only what the index names, and there is none."""

    def change(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        (source / "model.safetensors.index.json").unlink()
        publish(source, destination, **more)

    change_publish(addons.consolidated, change)


@mutant(kills=["IDX-004"], source="`state_dict()` as it is")
def saves_tied_weights_twice(addons: Any) -> None:
    """The embedding is in the files under two names."""
    replace(addons, held(addons, "_tied_again"), lambda _model: [])


@mutant(kills=["IDX-004"], source="safetensors: `save_model` drops whatever shares memory")
def saves_shared_memory_once(addons: Any) -> None:
    """A weight that was tied by hand is random after loading."""
    replace(addons, held(addons, "_tied_again"), lambda _model: [""])


@mutant(kills=["IDX-005"], also=("CODE",), source="torch 2.13: `consolidate_safetensors_files`")
def looks_for_shards_by_a_pattern(addons: Any) -> None:
    """In a directory called `lr=[0.1]` the weights files are without tensors."""
    replace(addons, held(addons, "AnyPathWriter"), HuggingFaceStorageWriter)
