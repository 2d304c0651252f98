# SPDX-License-Identifier: Apache-2.0
"""Faults in the mapping of dtypes (spec/index.md); of the other clauses there are some in consolidated.py."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

from spec_tests.mutants.editing import held, replace
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
