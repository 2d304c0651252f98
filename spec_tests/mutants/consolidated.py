# SPDX-License-Identifier: Apache-2.0
"""Faults where weights and metadata meet (spec/post_save.md, spec/index.md, and LOAD-003 and LOAD-004)."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from spec_tests.mutants.editing import held, replace
from spec_tests.mutants.registry import mutant


def _change_out(package: Any, change: Callable[..., None]) -> None:
    """``change(copy_out, copy)`` takes the place of copying the metadata out, on the rank that writes."""
    original = package.hf_metadata.copy_out
    package.hf_metadata.copy_out = lambda copy: change(original, copy)


def _change_publish(module: Any, change: Callable[..., None]) -> None:
    """``change(publish, source, destination, more)`` takes the place of the moves that one module makes."""
    original = module.publish
    module.publish = lambda source, destination, **more: change(original, source, destination, more)


def _change_tensors(package: Any, change: Callable[..., dict[str, torch.Tensor]]) -> None:
    """``change(tensors, model_state, dtype, v4_compatible)`` takes the place of the choice of tensors."""
    original = held(package, "tensors_to_save")
    replace(package, original, lambda *settings: change(original, *settings))


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
    _change_publish(
        addons.hf_metadata,
        lambda publish, source, destination, more: publish(source, destination, marker=more["marker"]),
    )


@mutant(kills=["POST-005"], also=("LOAD",), source="files written over, and nothing else")
def leaves_stale_weights(addons: Any) -> None:
    """A model.safetensors of an earlier save is read in place of the new index."""
    _change_publish(
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

    _change_publish(addons.consolidated, change)


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


@mutant(kills=["IDX-001"], also=("ERR", "POST"), source="NVIDIA-NeMo/Automodel: shards in a directory that stays")
def keeps_the_shards_of_the_last_save(addons: Any) -> None:
    """After a save by fewer ranks most weights are the old ones, without an error."""

    def change(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        kept = source.parent / "kept"
        (source / "sharded").rename(kept)
        publish(source, destination, **more)
        kept.rename(source / "sharded")

    _change_publish(addons.consolidated, change)
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

    _change_publish(addons.consolidated, change)


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


@mutant(kills=["LOAD-003"], also=("IDX", "CODE", "POST"), source="`model.model.state_dict()`")
def leaves_out_the_head(addons: Any) -> None:
    """The head is missing in the checkpoint, and transformers makes a random one."""

    def change(make: Any, *settings: Any) -> dict[str, torch.Tensor]:
        return {name: it for name, it in make(*settings).items() if not name.startswith("lm_head")}

    _change_tensors(addons, change)


@mutant(kills=["LOAD-003"], source="`model.state_dict()` without the model's `state_dict_adapter`")
def saves_native_names(addons: Any) -> None:
    """The experts have names that transformers does not know: they are random after loading."""
    replace(addons, held(addons, "state_dict_adapter"), lambda _parts: None)


@mutant(kills=["LOAD-004"], source="`model.to(torch.bfloat16)` before saving")
def casts_the_live_model(addons: Any) -> None:
    """Training goes on with bf16 master weights, without a word."""

    def change(make: Any, state: Any, dtype: torch.dtype | None, v4_compatible: bool) -> dict[str, torch.Tensor]:
        for _, parameter in _parameters(state.model) if dtype is not None else ():
            parameter.data = parameter.data.to(dtype)
        return dict(make(state, dtype, v4_compatible))

    _change_tensors(addons, change)


def _parameters(parts: list[nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for part in parts:
        yield from part.named_parameters()


@mutant(kills=["LOAD-004"], source="a dtype that reaches the config alone")
def leaves_the_weights_as_they_are(addons: Any) -> None:
    """The config says bfloat16, the files are of twice the size."""
    _change_tensors(addons, lambda make, state, _dtype, v4_compatible: make(state, None, v4_compatible))


@mutant(kills=["LOAD-004", "CFG-007"], source="a dtype that reaches the weights alone")
def leaves_the_saved_dtype_out_of_the_config(addons: Any) -> None:
    """The config says float32 above bfloat16 weights."""
    original = held(addons, "saved_dtype")
    replace(addons, original, lambda save, views: original(dataclasses.replace(save, dtype=None), views))
