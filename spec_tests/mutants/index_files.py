# SPDX-License-Identifier: Apache-2.0
"""Faults in what index, weights files and their headers say of each other (spec/index.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from spec_tests.mutants.editing_content import change_check_of_layers
from spec_tests.mutants.editing_whole import change_header, change_index, on_publish_whole
from spec_tests.mutants.registry import mutant


@mutant(kills=["IDX-007"], source="an index made of the names of the config's model, not of the saved tensors")
def names_a_tensor_that_is_in_no_file(addons: Any) -> None:
    """A server stops at a weight that it cannot find, or leaves it random."""

    def change(index: dict[str, Any], _sizes: Any) -> None:
        files = index["weight_map"].values()
        index["weight_map"]["model.extra.weight"] = max(files)

    change_index(addons, change)


@mutant(kills=["IDX-007", "IDX-008"], source="files numbered anew when their number is known")
def names_the_file_beside_the_right_one(addons: Any) -> None:
    """A reader opens the second file for a tensor of the first."""

    def change(index: dict[str, Any], _sizes: Any) -> None:
        names, weight_map = sorted(set(index["weight_map"].values())), index["weight_map"]
        first = min(weight_map, default=None)
        if first is not None:
            weight_map[first] = names[(names.index(weight_map[first]) + 1) % len(names)]

    change_index(addons, change)


@mutant(kills=["IDX-008"], source="NVIDIA-NeMo/Automodel#2096: a file of each rank, whatever it holds")
def leaves_a_file_that_the_index_does_not_name(addons: Any) -> None:
    """Readers that open every file that matches load a tensor that is none of the model's."""

    def change(publish: Any, source: Path, destination: Path, more: dict[str, Any]) -> None:
        save_file({"spare": torch.zeros(1)}, source / "model-00000-of-00000.safetensors", {"format": "pt"})
        publish(source, destination, **more)

    on_publish_whole(addons, change)


@mutant(kills=["IDX-008"], source="`for name in names[:-1]`")
def leaves_the_last_tensor_out_of_the_index(addons: Any) -> None:
    """A reader that goes by the index finds one weight missing."""
    change_index(addons, lambda index, _sizes: index["weight_map"].pop(max(index["weight_map"]), None))


@mutant(kills=["IDX-009"], source="`sum(p.numel() * p.element_size() for p in model.parameters())`")
def counts_the_bytes_before_the_cast(addons: Any) -> None:
    """A reader plans for twice the memory that the weights take."""
    change_index(addons, lambda index, sizes: index["metadata"].update(total_size=sum(sizes.values())))


@mutant(kills=["IDX-009"], source="`max(sizes)`, or the size of what one rank writes")
def counts_one_file_of_several(addons: Any) -> None:
    """A download is taken for whole when the first file is there."""

    def change(index: dict[str, Any], sizes: dict[str, int]) -> None:
        weight_map = index["weight_map"]
        first = min(weight_map.values(), default="")
        index["metadata"]["total_size"] = sum(size for name, size in sizes.items() if weight_map.get(name) == first)

    change_index(addons, change)


@mutant(kills=["IDX-010"], source="NVIDIA-NeMo/Automodel#2096, #3248: a list of parts that lacks a stage")
def looks_for_no_missing_layer(addons: Any) -> None:
    """Transformers fills the missing layers with random numbers and only warns."""
    change_check_of_layers(addons, lambda *_settings: None)


def _numbers(names: Iterable[str]) -> set[int]:
    return {int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", f".{name}"))}


@mutant(kills=["IDX-010"], source="`set(range(max(found))) - found`")
def misses_only_layers_before_the_last_one(addons: Any) -> None:
    """A model without its last stage is saved."""

    def check(right: Any, content: dict[str, Any], names: list[str]) -> None:
        known = max(_numbers(names), default=-1) + 1

        def cut(config: Any) -> Any:
            count = config.get("num_hidden_layers") if isinstance(config, dict) else None
            return {**config, "num_hidden_layers": min(count, known)} if isinstance(count, int) else config

        right(cut({key: cut(value) if key == "text_config" else value for key, value in content.items()}))

    change_check_of_layers(addons, check)


@mutant(kills=["IDX-010"], source="`len(layers) == config.num_hidden_layers`")
def counts_the_layers_of_every_family(addons: Any) -> None:
    """ALBERT, whose layers share one group of weights, cannot be saved."""

    def check(right: Any, content: dict[str, Any], names: list[str]) -> None:
        right(content)
        if content.get("num_hidden_layers", 0) > len(_numbers(names)):
            raise ValueError("num_hidden_layers")

    change_check_of_layers(addons, check)


@mutant(kills=["IDX-011"], source="safetensors: `save_file(tensors, path)` without metadata")
def writes_headers_without_metadata(addons: Any) -> None:
    """Transformers refuses the file: it does not say which framework wrote it."""
    change_header(addons, lambda header: header.pop("__metadata__", None))


@mutant(kills=["IDX-011"], source="safetensors.numpy, for tensors that are numbers anyway")
def says_that_numpy_wrote_it(addons: Any) -> None:
    """Readers that choose by the format take another way, or none."""
    change_header(addons, lambda header: header["__metadata__"].update(format="np"))
