# SPDX-License-Identifier: Apache-2.0
"""Faults with tensors that are no matrix of floats (spec/index.md, and LOAD-008 of spec/load.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from spec_tests.mutants.editing_whole import change_cast, change_dtype_names, change_tensors
from spec_tests.mutants.registry import mutant


def _each(package: Any, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """Every tensor is saved as ``change(tensor)``, or not at all where that is None."""

    def changed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        made = {name: change(tensor) for name, tensor in tensors.items()}
        return {name: tensor for name, tensor in made.items() if tensor is not None}

    change_tensors(package, changed)


@mutant(kills=["IDX-012", "LOAD-008"], source="torch 2.13: `consolidate_safetensors_files`")
def saves_scalars_as_zero(addons: Any) -> None:
    """CLIP finds every image like every text: its `logit_scale` is 0.0."""
    _each(addons, lambda tensor: torch.zeros_like(tensor) if tensor.ndim == 0 else tensor)


@mutant(kills=["IDX-012"], source="`numpy.ascontiguousarray`, which gives one dimension at least")
def saves_scalars_as_vectors(addons: Any) -> None:
    """A scalar comes back with another shape, which transformers takes for a mismatch."""
    _each(addons, lambda tensor: tensor.reshape(1) if tensor.ndim == 0 else tensor)


@mutant(kills=["IDX-012"], source="`if tensor.numel():`")
def leaves_out_empty_tensors(addons: Any) -> None:
    """A key is missing on loading."""
    _each(addons, lambda tensor: tensor if tensor.numel() else None)


@mutant(kills=["IDX-012"], source="jax and its like: 64-bit integers are off by default")
def narrows_wide_integers(addons: Any) -> None:
    """A counter has another dtype, and starts again when it is large."""
    _each(addons, lambda tensor: tensor.to(torch.int32) if tensor.dtype is torch.int64 else tensor)


@mutant(kills=["IDX-013"], source="`if tensor.is_floating_point(): tensor.to(dtype)`")
def casts_float8(addons: Any) -> None:
    """A quantised weight is saved in 16 bits, beside the scales that are no longer its own."""
    change_cast(
        addons, lambda tensor, dtype: dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    )


@mutant(kills=["IDX-013"], source="`tensor.to(dtype)`")
def casts_integers(addons: Any) -> None:
    """A counter is a rounded float."""

    def cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
        float8 = tensor.is_floating_point() and tensor.dtype.itemsize == 1
        return tensor.dtype if dtype is None or float8 else dtype

    change_cast(addons, cast)


@mutant(kills=["IDX-014"], source="safetensors 0.8, which has a name for them")
def writes_complex_numbers(addons: Any) -> None:
    """Whoever has an older safetensors cannot open the file."""
    names = {torch.complex64: "C64", torch.complex128: "C128"}
    change_dtype_names(addons, lambda name, dtype: names.get(dtype) or name())


@mutant(kills=["IDX-014"], source="`TypeError: no such dtype`, from deep inside")
def says_not_which_tensor_is_complex(addons: Any) -> None:
    """The save fails when training is over, and nothing says which buffer it is."""

    def change(name: Any, dtype: torch.dtype) -> str:
        if dtype.is_complex:
            raise TypeError(f"{dtype} is not supported")
        return str(name())

    change_dtype_names(addons, change)
