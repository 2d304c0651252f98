# SPDX-License-Identifier: Apache-2.0
"""Faults in the hooks' interface (spec/hooks.md)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import nn

from spec_tests.mutants.editing_adapter import change_metadata
from spec_tests.mutants.editing_saving import (
    after_saving,
    also_written,
    before_saving,
    change_accepted,
    change_keywords,
    look_inside,
    unwrapped,
)
from spec_tests.mutants.registry import mutant

CONFIG, METADATA = "adapter_config.json", "automodel_peft_config.json"
KNOWN = {
    "model_path",
    "model_state",
    "peft_config",
    "tokenizer",
    "original_model_path",
    "v4_compatible",
    "process_group",
}
# Faults that stop every save of the suite.
EVERY_AREA = ("ADP", "CODE", "ERR", "EXP", "HOOK", "RANK", "TGT", "TOK")


@mutant(kills=["HOOK-001"], source="a hook that is of use to its caller")
def returns_the_path(addons: Any) -> None:
    """A caller that chains hooks until one returns something stops after the first."""
    original = addons.PeftAddon.pre_save

    def pre_save(self: Any, **kwargs: Any) -> Any:
        original(self, **kwargs)
        return kwargs["model_path"]

    addons.PeftAddon.pre_save = pre_save


@mutant(kills=["HOOK-001"], source="a signature that documents itself")
def names_its_keywords_in_the_signature(addons: Any) -> None:
    """A caller may pass the path by position, and a later version breaks it."""
    original = addons.PeftAddon.pre_save

    def pre_save(self: Any, model_path: Any = None, **kwargs: Any) -> None:
        original(self, model_path=model_path, **kwargs)

    addons.PeftAddon.pre_save = pre_save


@mutant(kills=["HOOK-002", "TOK-002"], also=("RANK", "ERR", "TOK"), source="peft: `create_or_update_model_card`")
def writes_a_model_card(addons: Any) -> None:
    """The user's own README.md is gone."""
    also_written(addons, lambda place, *_more: (place / "README.md").write_text("---\nlibrary_name: peft\n---\n"))


@mutant(kills=["HOOK-003"], source="a signature without **kwargs")
def refuses_keywords_it_does_not_know(addons: Any) -> None:
    """A checkpointer that passes one set of keywords to every add-on cannot save."""

    def check(kwargs: dict[str, Any]) -> None:
        if unknown := kwargs.keys() - KNOWN:
            raise TypeError(f"pre_save() got an unexpected keyword {min(unknown)!r}")

    before_saving(addons, check)


@mutant(kills=["HOOK-003"], source="the other add-on's keyword for its directory")
def writes_into_another_add_ons_directory(addons: Any) -> None:
    """With keywords for both add-ons, the adapter's files are elsewhere."""
    original = addons.PeftAddon.pre_save

    def pre_save(self: Any, **kwargs: Any) -> None:
        original(self, **{**kwargs, "model_path": kwargs.get("hf_metadata_dir") or kwargs.get("model_path")})

    addons.PeftAddon.pre_save = pre_save


@mutant(kills=["HOOK-004"], also=("RANK",), source="NVIDIA-NeMo/Automodel: `if model_state is not None`")
def skips_the_save_without_a_model_state(addons: Any) -> None:
    """The save ends well, and adapter_config.json is not there."""
    original = addons.PeftAddon.pre_save

    def pre_save(self: Any, **kwargs: Any) -> None:
        if kwargs.get("model_state") is not None:
            original(self, **kwargs)

    addons.PeftAddon.pre_save = pre_save


@mutant(kills=["HOOK-005"], source="`if v4_compatible:`")
def takes_any_text_for_true(addons: Any) -> None:
    """`v4_compatible="no"` from a YAML file means yes."""
    change_accepted(addons, "v4_compatible", lambda _value: True, "anything")


@mutant(kills=["HOOK-006"], also=("RANK", "TOK", "ERR"), source="a clean-up of what is temporary")
def cleans_up_after_the_save(addons: Any) -> None:
    """automodel_peft_config.json is gone once the weights are written."""

    def post_save(_self: Any, **kwargs: Any) -> None:
        Path(kwargs["model_path"], METADATA).unlink(missing_ok=True)

    addons.PeftAddon.post_save = post_save


@mutant(kills=["HOOK-007"], also=("RANK",), source="NVIDIA-NeMo/Automodel#3150")
def does_not_look_inside_ddp(addons: Any) -> None:
    """Under DDP, config and adapter are not found: base model and task type are missing, experts unconverted."""
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    look_inside(addons, lambda module: not isinstance(module, parallel))


@mutant(kills=["HOOK-008"], also=EVERY_AREA, source="NVIDIA-NeMo/Automodel: `kwargs['original_model_path']`")
def insists_on_an_original_path(addons: Any) -> None:
    """A model that was built from its config, not loaded, cannot be saved: KeyError."""
    before_saving(addons, lambda kwargs: kwargs["original_model_path"])


@mutant(kills=["HOOK-009"], source="a config that is completed on the way")
def writes_the_targets_into_the_live_peft_config(addons: Any) -> None:
    """After the first checkpoint the run goes on with another PEFT config, on rank 0 only."""

    def complete(_place: Path, save: Any, plan: Any) -> None:
        save.peft_config.target_modules = list(plan.target_modules)

    also_written(addons, complete)


@mutant(kills=["HOOK-009"], source="NVIDIA-NeMo/Automodel: live config mutated, on rank 0 only")
def edits_the_live_models_config(addons: Any) -> None:
    """After the first checkpoint rank 0's model has another config than the others'."""

    def edit(_place: Path, save: Any, _plan: Any) -> None:
        config = getattr(unwrapped(addons, save.model_state.model[0]), "config", None)
        if config is not None:
            config.use_cache = not getattr(config, "use_cache", True)

    also_written(addons, edit)


@mutant(kills=["HOOK-010"], also=("RANK",), source="a time for the log's sake")
def notes_the_time_of_the_save(addons: Any) -> None:
    """No two saves of the same adapter are equal."""
    change_metadata(addons, lambda content, _config: content.update(saved_at=time.time_ns()))


@mutant(kills=["HOOK-010"], also=("HOOK", "RANK", "TGT"), source="a path of the machine in a file")
def notes_where_it_was_saved(addons: Any) -> None:
    """The checkpoint names directories of the machine it came from."""

    def note(kwargs: dict[str, Any]) -> None:
        path = Path(kwargs["model_path"], METADATA)
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("{", f'{{\n  "saved_to": "{path.parent}",', 1), encoding="utf-8")

    after_saving(addons, note)


@mutant(kills=["HOOK-008"], also=("ADP", "META"), source="NVIDIA-NeMo/Automodel#1532: a default of its own")
def is_v4_compatible_unless_told_otherwise(addons: Any) -> None:
    """A caller that leaves the keyword out gets a config that does not fit its weights."""
    change_keywords(addons, lambda kwargs: {"v4_compatible": True, **kwargs})
