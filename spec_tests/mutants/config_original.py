# SPDX-License-Identifier: Apache-2.0
"""Faults in the files of the original model, which transformers 4 reads (spec/config.md)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from spec_tests.mutants import editing_peft as edit
from spec_tests.mutants.editing import held, replace
from spec_tests.mutants.editing_content import change_check_of_shapes, change_files, change_original
from spec_tests.mutants.registry import mutant


@mutant(kills=["CFG-008", "CFG-009", "GEN-003"], source="a keyword that nobody passes on")
def ignores_v4_compatible(addons: Any) -> None:
    """The rope settings are read as defaults by transformers 4."""
    change_files(addons, lambda make, save: make(dataclasses.replace(save, v4_compatible=False)))


@mutant(kills=["CFG-008", "CFG-011"], source="`shutil.copy` of the original")
def keeps_quantisation_in_the_original(addons: Any) -> None:
    """The original was MXFP4, the saved weights are bf16, and readers unpack them."""
    change_original(addons, lambda _read, path: json.loads(path.read_text(encoding="utf-8")))


@mutant(kills=["CFG-008"], source="the old form in place of the new one")
def loses_the_live_config_for_v4(addons: Any) -> None:
    """What training changed in the config is nowhere."""
    change_files(addons, lambda make, save: {name: it for name, it in make(save).items() if name != "config.v5.json"})


@mutant(kills=["CFG-009"], source="`if os.path.exists(original): ... else: config.save_pretrained`")
def writes_the_new_form_under_the_old_name(addons: Any) -> None:
    """Without a local original transformers 4 gets the new form, and a wrong `rope_theta`."""

    def change(make: Any, save: Any) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            return dict(make(save))
        return dict(make(dataclasses.replace(save, v4_compatible=False)))

    change_files(addons, change)


@mutant(kills=["CFG-010"], source="`os.path.isdir(original_model_path)`")
def takes_the_directory_for_the_file(addons: Any) -> None:
    """A file that a model lacks is taken to be there."""
    replace(addons, held(addons, "_config_exists"), lambda path, _name: path is not None and Path(path).is_dir())


@mutant(kills=["CFG-017"], source="`shutil.copy` of the original")
def passes_an_original_of_another_shape_on(addons: Any) -> None:
    """After the vocabulary grew, transformers 4 refuses the weights, or reads a part of them."""
    change_check_of_shapes(addons, lambda *_settings: None)


@mutant(kills=["CFG-017"], source="`original == live`, key by key")
def takes_another_spelling_for_another_shape(addons: Any) -> None:
    """No mixture of experts can be saved for transformers 4, which says `num_experts`."""

    def literal(check: Any, original: dict[str, Any], live: dict[str, Any]) -> None:
        check()
        if missing := {"num_local_experts", "id2label", "vocab_size", "architectures"} & live.keys() - original.keys():
            raise ValueError(f"the original has no {min(missing)}")

    change_check_of_shapes(addons, literal)


@mutant(kills=["CFG-023"], source="`json.loads(path.read_text(encoding='utf-8'))`")
def reads_json_without_a_name(addons: Any) -> None:
    """An error says line 1 column 1, and not of which file."""
    import json

    edit.change_reading(addons, lambda path: json.loads(path.read_text(encoding="utf-8")))
