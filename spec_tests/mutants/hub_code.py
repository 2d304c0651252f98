# SPDX-License-Identifier: Apache-2.0
"""Faults in finding the code of a model through the model (spec/custom_code.md)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants.editing import held, replace
from spec_tests.mutants.registry import mutant


@mutant(kills=["CODE-009"], source="NVIDIA-NeMo/Automodel before 0.7: every model's code copied")
def copies_the_code_of_stock_models(addons: Any) -> None:
    """transformers runs the training code, which the server lacks packages for, in place of its own."""
    original = held(addons, "_maybe_save_custom_model_code")
    replace(addons, original, lambda source, destination, _model=None: original(source, destination))


@mutant(kills=["CODE-009"], source="`getattr(model_state.model[0], '_export_as_stock_model', False)`")
def asks_the_wrapper_whether_it_is_stock(addons: Any) -> None:
    """A model in activation checkpointing or DDP comes with its training code, the bare one without."""
    original = held(addons, "_maybe_save_custom_model_code")

    def broken(source: Any, destination: Any, model: Any = None) -> None:
        marked = "_export_as_stock_model" in vars(type(model)) or "_export_as_stock_model" in vars(model)
        original(source, destination, model if marked else None)

    replace(addons, original, broken)
