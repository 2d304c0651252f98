# SPDX-License-Identifier: Apache-2.0
"""Faults in the use of a model's own metadata exporter (spec/hooks.md)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from spec_tests.mutants.editing import held
from spec_tests.mutants.registry import mutant


def _change_write(package: Any, change: Any) -> None:
    """``change(write, save, views, exporter)`` takes the place of writing, where a model has an exporter."""
    original = package.hf_metadata.write

    def broken(save: Any, views: Any, exporter: Any) -> None:
        if exporter is None:
            original(save, views, None)
        else:
            change(original, save, views, exporter)

    package.hf_metadata.write = broken


def _given(save: Any) -> dict[str, Any]:
    return {"tokenizer": save.tokenizer, "original_model_path": save.original_model_path}


@mutant(kills=["HOOK-011", "HOOK-012", "HOOK-013"], source="NVIDIA-NeMo/Automodel before #3021")
def knows_no_exporters(addons: Any) -> None:
    """A re-ranker is published with the config of the causal model that it was made of."""
    addons.hf_metadata.validated_exporter = lambda _save: None


@mutant(kills=["HOOK-011"], source="`if rank == 0: exporter.validate(...)`")
def validates_on_the_rank_that_writes(addons: Any) -> None:
    """What one rank alone would refuse is published."""
    original, unwrapped = addons.hf_metadata.validated_exporter, held(addons, "unwrapped")

    def broken(save: Any) -> Any:
        if not dist.is_initialized() or dist.get_rank() == 0:
            return original(save)
        return unwrapped(save.model_state.model[0])._get_consolidated_hf_metadata_exporter(**_given(save))

    addons.hf_metadata.validated_exporter = broken


@mutant(kills=["HOOK-011"], source="NVIDIA-NeMo/Automodel: an exception before the barrier")
def lets_the_others_wait_for_a_refusal(addons: Any) -> None:
    """Every other rank waits for the whole timeout of the group."""
    addons.hooks.everywhere = lambda step, _group: step()


@mutant(kills=["HOOK-011"], source="one method that checks and writes")
def writes_before_it_validates(addons: Any) -> None:
    """A refusal comes when the directory is already there, and somebody's listing shows it."""
    original = addons.hf_metadata.validated_exporter

    def broken(save: Any) -> Any:
        save.hf_metadata_dir.mkdir(parents=True, exist_ok=True)
        return original(save)

    addons.hf_metadata.validated_exporter = broken


@mutant(kills=["HOOK-011"], source="NVIDIA-NeMo/Automodel: only DDP looked into")
def asks_the_wrapper_for_an_exporter(addons: Any) -> None:
    """A model in activation checkpointing is exported like any other."""
    original = addons.hf_metadata.validated_exporter

    def broken(save: Any) -> Any:
        own = "_get_consolidated_hf_metadata_exporter" in vars(save.model_state.model[0])
        return original(save) if own else None

    addons.hf_metadata.validated_exporter = broken


@mutant(kills=["HOOK-012"], source="`config.save_pretrained` first, then what the model adds")
def generates_beside_the_exporter(addons: Any) -> None:
    """A generation config and code lie in the checkpoint of a re-ranker."""

    def change(write: Any, save: Any, views: Any, exporter: Any) -> None:
        write(save, views, exporter)
        content = held(addons, "generation_content")(held(addons, "unwrapped")(save.model_state.model[0]))
        text = held(addons, "json_text")(content)
        held(addons, "write_text")(save.hf_metadata_dir / "generation_config.json", text)

    _change_write(addons, change)


@mutant(kills=["HOOK-012"], also=("HOOK",), source="the same last step for everybody")
def edits_what_the_exporter_wrote(addons: Any) -> None:
    """A config is written anew, with references that its model does not mean."""
    local = held(addons, "make_references_local")

    def change(write: Any, save: Any, views: Any, exporter: Any) -> None:
        def saving(*, hf_metadata_dir: str, **keywords: Any) -> None:
            exporter.save(hf_metadata_dir=hf_metadata_dir, **keywords)
            local(Path(hf_metadata_dir))

        write(save, views, SimpleNamespace(save=saving))

    _change_write(addons, change)


@mutant(kills=["HOOK-012"], source="an exporter taken to write everything")
def writes_no_mapping_beside_the_exporters_files(addons: Any) -> None:
    """Offline consolidation finds no file index."""

    def change(write: Any, save: Any, views: Any, exporter: Any) -> None:
        write(save, views, exporter)
        (save.hf_metadata_dir / held(addons, "INDEX_MAPPING")).unlink(missing_ok=True)

    _change_write(addons, change)


@mutant(kills=["HOOK-013"], source="NVIDIA-NeMo/Automodel: `exporter.save(hf_metadata_dir=hf_metadata_dir)`")
def lets_the_exporter_write_in_place(addons: Any) -> None:
    """A save that fails half-way leaves the new config beside the tokenizer of the old checkpoint."""

    def change(write: Any, save: Any, views: Any, exporter: Any) -> None:
        def saving(*, hf_metadata_dir: str, **keywords: Any) -> None:
            del hf_metadata_dir
            exporter.save(hf_metadata_dir=str(save.hf_metadata_dir), **keywords)

        write(save, views, SimpleNamespace(save=saving))

    _change_write(addons, change)


@mutant(kills=["HOOK-014"], source="`model.get_exporter().validate(...)`")
def expects_an_exporter_of_whoever_has_the_method(addons: Any) -> None:
    """AttributeError: 'NoneType' object has no attribute 'validate'."""
    original, unwrapped = addons.hf_metadata.validated_exporter, held(addons, "unwrapped")

    def broken(save: Any) -> Any:
        model = unwrapped(save.model_state.model[0])
        if (found := original(save)) is None and hasattr(model, "_get_consolidated_hf_metadata_exporter"):
            raise AttributeError("'NoneType' object has no attribute 'validate'")
        return found

    addons.hf_metadata.validated_exporter = broken
