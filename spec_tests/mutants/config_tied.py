# SPDX-License-Identifier: Apache-2.0
"""Faults in what config.json says of tied embeddings (spec/config.md)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants.editing_content import change_live, change_original, change_said
from spec_tests.mutants.registry import mutant

_KEY = "tie_word_embeddings"


@mutant(kills=["CFG-022"], source="NVIDIA-NeMo/Automodel#2511: `config.tie_word_embeddings` written as it is")
def says_tied_as_configured(addons: Any) -> None:
    """Transformers 4 drops the head that training has untied."""
    change_said(addons, lambda say, _tied: say(tied=None))


@mutant(kills=["CFG-022"], source="`config['tie_word_embeddings'] = ...`")
def corrects_the_top_level_alone(addons: Any) -> None:
    """The text model of a vision model goes by the flag in its own config."""

    def change(say: Any, tied: bool | None) -> dict[str, Any]:
        content: dict[str, Any] = say(tied=None)
        return {**content, _KEY: tied} if tied is not None and _KEY in content else content

    change_said(addons, change)


@mutant(kills=["CFG-022"], source="vllm-project/vllm#51063: only the untied case thought of")
def never_says_that_they_are_tied(addons: Any) -> None:
    """One tensor is saved beside a false, and the head is random."""
    change_said(addons, lambda say, tied: say(tied=tied or None))


@mutant(kills=["CFG-022"], source="the live config corrected, and the original copied")
def keeps_the_flag_of_the_original(addons: Any) -> None:
    """The checkpoint for transformers 4 says that the two tensors in it are one."""
    change_original(addons, lambda read, _path: read(tied=None))


@mutant(kills=["CFG-022"], also=("HOOK",), source="`model.config.tie_word_embeddings = False` before saving")
def corrects_the_live_config(addons: Any) -> None:
    """Rank 0 goes on with another config than the others."""

    def change(content: dict[str, Any], model: Any) -> None:
        if hasattr(model.config, _KEY):
            setattr(model.config, _KEY, content[_KEY])

    change_live(addons, change)
