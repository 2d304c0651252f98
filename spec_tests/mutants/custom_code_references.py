# SPDX-License-Identifier: Apache-2.0
"""Faults in references to code, and in what is said of code that is missing (spec/custom_code.md)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from spec_tests.mutants.editing import held, replace
from spec_tests.mutants.registry import mutant


@mutant(kills=["CODE-006", "CODE-007"], source="NVIDIA-NeMo/Automodel: `config.auto_map` written as it is")
def leaves_references_as_they_are(addons: Any) -> None:
    """Without the hub the checkpoint cannot be loaded, though its code lies beside it."""
    replace(addons, held(addons, "make_references_local"), lambda _directory: None)


@mutant(kills=["CODE-006"], source="`reference.split('--')[-1]`")
def makes_every_reference_local(addons: Any) -> None:
    """Code that is on the hub alone is looked for in the checkpoint."""
    local = held(addons, "_local")
    replace(addons, local, lambda value, directory: _last_parts(local(value, directory)))


def _last_parts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _last_parts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_last_parts(item) for item in value]
    return value.rpartition("--")[2] if isinstance(value, str) else value


@mutant(kills=["CODE-007"], source="a folder whose weights alone were downloaded")
def says_nothing_of_missing_code(addons: Any) -> None:
    """That the checkpoint lacks its code shows when somebody loads it, elsewhere."""
    addons.custom_code.warnings = SimpleNamespace(warn=lambda *_said, **_more: None)


@mutant(kills=["CODE-007"], also=("CFG",), source="`shutil.copy` of what auto_map names")
def fails_over_missing_code(addons: Any) -> None:
    """A model that transformers has itself cannot be saved, for want of code that nobody needs."""

    def warn(said: str, **_more: Any) -> None:
        raise FileNotFoundError(said)

    addons.custom_code.warnings = SimpleNamespace(warn=warn)
