# SPDX-License-Identifier: Apache-2.0
"""Faults in the use of a model's own metadata exporter (spec/hooks.md)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from spec_tests.harness.export import INDEX_MAPPING
from spec_tests.mutants.editing_whole import (
    change_exporter,
    change_form_asked,
    change_generated,
    change_metadata,
    each_rank_alone,
)
from spec_tests.mutants.registry import mutant


def _after_writing(package: Any, step: Callable[[Path], None]) -> None:
    """``step(directory)`` follows on writing, where a model has an exporter."""

    def changed(write: Any, save: Any, exporter: Any) -> None:
        write()
        if exporter is not None:
            step(save.hf_metadata_dir)

    change_metadata(package, changed)


def _change_saving(package: Any, change: Callable[..., None]) -> None:
    """``change(save, directory, final)`` takes the place of the exporter's ``save``, for what is later in ``final``."""

    def changed(find: Any, keywords: Any) -> Any:
        exporter = find(keywords)
        if exporter is None:
            return None

        def saving(*, hf_metadata_dir: str, **more: Any) -> None:
            def save(directory: Any) -> None:
                exporter.save(hf_metadata_dir=str(directory), **more)

            change(save, Path(hf_metadata_dir), keywords.hf_metadata_dir)

        return SimpleNamespace(save=saving)

    change_exporter(package, changed)


def _given(save: Any) -> dict[str, Any]:
    return {"tokenizer": save.tokenizer, "original_model_path": save.original_model_path}


@mutant(kills=["HOOK-011", "HOOK-012", "HOOK-013"], source="NVIDIA-NeMo/Automodel before #3021")
def knows_no_exporters(addons: Any) -> None:
    """A re-ranker is published with the config of the causal model that it was made of."""
    change_exporter(addons, lambda _find, _save: None)


@mutant(kills=["HOOK-011"], source="`if rank == 0: exporter.validate(...)`")
def validates_on_the_rank_that_writes(addons: Any) -> None:
    """What one rank alone would refuse is published."""

    def change(find: Any, save: Any) -> Any:
        if not dist.is_initialized() or dist.get_rank() == 0:
            return find(save)
        return save.model_state.model[0]._get_consolidated_hf_metadata_exporter(**_given(save))

    change_exporter(addons, change)


@mutant(kills=["HOOK-011"], source="NVIDIA-NeMo/Automodel: an exception before the barrier")
def lets_the_others_wait_for_a_refusal(addons: Any) -> None:
    """Every other rank waits for the whole timeout of the group."""
    each_rank_alone(addons)


@mutant(kills=["HOOK-011"], source="one method that checks and writes")
def writes_before_it_validates(addons: Any) -> None:
    """A refusal comes when the directory is already there, and somebody's listing shows it."""

    def change(find: Any, save: Any) -> Any:
        save.hf_metadata_dir.mkdir(parents=True, exist_ok=True)
        return find(save)

    change_exporter(addons, change)


@mutant(kills=["HOOK-011"], source="NVIDIA-NeMo/Automodel: only DDP looked into")
def asks_the_wrapper_for_an_exporter(addons: Any) -> None:
    """A model in activation checkpointing is exported like any other."""

    def change(find: Any, save: Any) -> Any:
        own = "_get_consolidated_hf_metadata_exporter" in vars(save.model_state.model[0])
        return find(save) if own else None

    change_exporter(addons, change)


@mutant(kills=["HOOK-012"], source="`config.save_pretrained` first, then what the model adds")
def generates_beside_the_exporter(addons: Any) -> None:
    """A generation config and code lie in the checkpoint of a re-ranker."""
    _after_writing(addons, lambda directory: (directory / "generation_config.json").write_text("{}") and None)


@mutant(kills=["HOOK-012"], also=("HOOK",), source="the same last step for everybody")
def edits_what_the_exporter_wrote(addons: Any) -> None:
    """A config is written anew, with references that its model does not mean."""

    def change(save: Any, directory: Path, _final: Path) -> None:
        save(directory)
        for path in directory.glob("*config*.json"):
            path.write_text(re.sub(r'"[^"]*--', '"', path.read_text()))

    _change_saving(addons, change)


@mutant(kills=["HOOK-012"], source="an exporter taken to write everything")
def writes_no_mapping_beside_the_exporters_files(addons: Any) -> None:
    """Offline consolidation finds no file index."""
    _after_writing(addons, lambda directory: (directory / INDEX_MAPPING).unlink(missing_ok=True))


@mutant(kills=["HOOK-013"], source="NVIDIA-NeMo/Automodel: `exporter.save(hf_metadata_dir=hf_metadata_dir)`")
def lets_the_exporter_write_in_place(addons: Any) -> None:
    """A save that fails half-way leaves the new config beside the tokenizer of the old checkpoint."""
    _change_saving(addons, lambda save, _directory, final: save(final))


@mutant(kills=["HOOK-014"], source="`model.get_exporter().validate(...)`")
def expects_an_exporter_of_whoever_has_the_method(addons: Any) -> None:
    """AttributeError: 'NoneType' object has no attribute 'validate'."""

    def change(find: Any, save: Any) -> Any:
        asked = hasattr(save.model_state.model[0], "_get_consolidated_hf_metadata_exporter")
        if (found := find(save)) is None and asked:
            raise AttributeError("'NoneType' object has no attribute 'validate'")
        return found

    change_exporter(addons, change)


@mutant(kills=["HOOK-015"], source="a shortcut")
def generates_what_the_live_model_is(addons: Any) -> None:
    """An encoder trained inside a wrapper is deployed with the wrapper's config."""
    change_generated(addons, model_config=None)


@mutant(kills=["HOOK-015"], source="a shortcut")
def generates_code_that_nobody_wants(addons: Any) -> None:
    """A stock model comes with the trainer's code."""
    change_generated(addons, save_custom_model_code=True)


@mutant(kills=["HOOK-016"], source="nemo-automodel 0.7.0")
def asks_every_exporter_for_the_old_form(addons: Any) -> None:
    """An exporter of the first form fails on a keyword, at the end of the training."""
    change_form_asked(addons, lambda _ask, _exporter, v4_compatible: {"v4_compatible": v4_compatible})
