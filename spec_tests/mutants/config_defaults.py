# SPDX-License-Identifier: Apache-2.0
"""Faults in what config.json says of the defaults (spec/config.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spec_tests.mutants.editing import change_live
from spec_tests.mutants.registry import mutant

# Without these readers could not tell the class, and other clauses would fail.
_KEPT = {"architectures", "auto_map", "dtype", "model_type", "quantization_config", "torch_dtype"}


def _drop_defaults(content: dict[str, Any], config: Any) -> None:
    defaults = {} if isinstance(config, Mapping) else type(config)().to_dict()
    for key in content.keys() & defaults.keys() - _KEPT:
        if content[key] == defaults[key]:
            del content[key]


@mutant(kills=["CFG-021"], source="transformers: `config.save_pretrained` writes the difference")
def leaves_out_what_the_class_has_as_default(addons: Any) -> None:
    """A release with another default for `rms_norm_eps` computes something else."""
    change_live(addons, lambda content, model: _drop_defaults(content, model.config))


@mutant(kills=["CFG-021"], source="transformers: `to_diff_dict` of the sub-configs")
def leaves_out_defaults_of_sub_configs(addons: Any) -> None:
    """As for the whole, for the text model inside a vision model."""

    def change(content: dict[str, Any], model: Any) -> None:
        for name, inner in content.items():
            if isinstance(inner, dict) and hasattr(getattr(model.config, name, None), "to_dict"):
                _drop_defaults(inner, getattr(model.config, name))

    change_live(addons, change)
