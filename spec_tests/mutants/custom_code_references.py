# SPDX-License-Identifier: Apache-2.0
"""Faults in references to code, and in what is said of code that is missing (spec/custom_code.md)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants.editing_content import change_references, change_warning
from spec_tests.mutants.registry import mutant


@mutant(kills=["CODE-006", "CODE-007"], source="NVIDIA-NeMo/Automodel: `config.auto_map` written as it is")
def leaves_references_as_they_are(addons: Any) -> None:
    """Without the hub the checkpoint cannot be loaded, though its code lies beside it."""
    change_references(addons, lambda _local, content: content)


@mutant(kills=["CODE-006"], source="`reference.split('--')[-1]`")
def makes_every_reference_local(addons: Any) -> None:
    """Code that is on the hub alone is looked for in the checkpoint."""

    def change(local: Any, _content: Any) -> Any:
        return {key: _last_parts(value) if key == "auto_map" else value for key, value in local().items()}

    change_references(addons, change)


def _last_parts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _last_parts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_last_parts(item) for item in value]
    return value.rpartition("--")[2] if isinstance(value, str) else value


@mutant(kills=["CODE-007"], source="a folder whose weights alone were downloaded")
def says_nothing_of_missing_code(addons: Any) -> None:
    """That the checkpoint lacks its code shows when somebody loads it, elsewhere."""
    change_warning(addons, lambda _said: None)


@mutant(kills=["CODE-007"], also=("CFG",), source="`shutil.copy` of what auto_map names")
def fails_over_missing_code(addons: Any) -> None:
    """A model that transformers has itself cannot be saved, for want of code that nobody needs."""

    def warn(said: str) -> None:
        raise FileNotFoundError(said)

    change_warning(addons, warn)
