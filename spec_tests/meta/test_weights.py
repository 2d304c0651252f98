# SPDX-License-Identifier: Apache-2.0
"""How the reference lays tensors over weights files and the ranks that write these, and what tells it a machine."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import safetensors.torch
import torch

from addons import weights
from addons.gathering import Transfer
from addons.holdings import Held, Source

EVERYWHERE = Source((0, 1, 2))


def laid(tensors, most, ranks):
    transfers = [Transfer(name, Held(*one, EVERYWHERE), (EVERYWHERE,)) for name, one in tensors.items()]
    return weights.Layout.of(transfers, most, ranks)


def bytes_by_name(**sizes):
    return {name: (torch.uint8, (size,)) for name, size in sizes.items()}


def test_file_is_byte_for_byte_as_safetensors_writes_it(tmp_path):
    tensors = {
        "a": torch.arange(3, dtype=torch.uint8),
        "b": torch.tensor([1.5, 2.5], dtype=torch.float64),
        "fran\u00e7ais_\u8a13": torch.ones(2, 3, dtype=torch.bfloat16),
        "m": torch.empty(0, 4),
        "n": torch.tensor(0.5),
    }
    weights.write_safetensors(tmp_path / "file", tensors)
    assert (tmp_path / "file").read_bytes() == safetensors.torch.save(tensors, metadata={"format": "pt"})


def test_file_is_filled_to_its_last_byte():
    sizes = {"d": 4, "b": 4, "c": 4, "a": 4, "e": 9, "f": 0, "g": 1}
    assert weights.file_indices(sizes, 8) == {"a": 1, "b": 1, "c": 2, "d": 2, "e": 3, "f": 4, "g": 4}


@pytest.mark.parametrize(
    ("sizes", "ranks", "writers"),
    [
        ({"a": 4, "b": 7, "c": 1, "d": 5, "e": 3}, 1, [0, 0, 0, 0, 0]),
        ({"a": 4, "b": 7, "c": 1, "d": 5, "e": 3}, 2, [1, 0, 1, 1, 0]),
        ({"a": 4, "b": 7, "c": 1, "d": 5, "e": 3}, 3, [2, 0, 1, 1, 2]),
        ({"a": 5, "b": 5, "c": 5, "d": 5}, 3, [0, 1, 2, 0]),
        ({"a": 5}, 3, [0]),
        ({}, 2, []),
    ],
)
def test_largest_file_goes_first_to_the_rank_that_has_least_to_write(sizes, ranks, writers):
    layout = laid(bytes_by_name(**sizes), 5, ranks)
    assert layout.files == [[name] for name in sizes]
    assert [layout.writers[at] for at in range(len(sizes))] == writers
    assert {one.name: one.writer for one in layout.order} == dict(zip(sizes, writers, strict=True))


MIXED = {
    "a": (torch.uint8, (3,)),
    "b": (torch.float32, (5,)),
    "c": (torch.bfloat16, (2, 2)),
    "d": (torch.float64, (1,)),
    "e": (torch.float32, (0, 7)),
    "f": (torch.float32, ()),
    "g": (torch.bfloat16, (9,)),
    "h": (torch.int8, (30,)),
    "i": (torch.int64, (2,)),
    "j": (torch.float32, (4,)),
}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_files_grow_side_by_side_each_from_its_beginning(ranks):
    layout = laid(MIXED, 32, ranks)
    assert len(layout.files) > ranks
    assert sorted(one.name for one in layout.order) == sorted(MIXED)
    places = {name: (at, start) for at, (_, starts) in enumerate(layout.heads) for name, start in starts.items()}
    left = [[one for one in layout.order if one.writer == rank] for rank in range(ranks)]
    assert all(left)
    written, ends = [0] * ranks, [len(head) for head, _ in layout.heads]
    for one in layout.order:
        assert written[one.writer] == min(had for had, more in zip(written, left, strict=True) if more)
        at, start = places[one.name]
        assert (layout.writers[at], ends[at]) == (one.writer, start)
        left[one.writer].remove(one)
        written[one.writer] += one.held.nbytes
        ends[at] += one.held.nbytes


@pytest.mark.parametrize("ranks", [2, 3])
def test_layout_depends_on_no_order_of_what_is_given(ranks):
    assert laid(dict(reversed(MIXED.items())), 32, ranks) == laid(MIXED, 32, ranks)


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="the kernel has no such name")
def test_containers_with_names_of_their_own_are_one_machine(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "one")
    found = weights._machine()
    monkeypatch.setattr(platform, "node", lambda: "another")
    assert weights._machine() == found


def test_system_that_numbers_no_boots_is_told_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "Path", lambda _place: tmp_path / "none")
    assert weights._machine() == (None, platform.node())


def test_error_of_a_write_is_not_hidden_by_one_of_closing(tmp_path, monkeypatch):
    tensors = {"a": torch.ones(4)}
    layout = weights.Layout.of([Transfer("a", Held(torch.float32, (4,), Source()), (Source(),))], 100, 1)

    def fail(said):
        def failing(*_arguments):
            raise OSError(said)

        return failing

    monkeypatch.setattr(weights.os, "pwrite", fail("no space"))
    monkeypatch.setattr(weights.os, "fsync", fail("no disk"))
    with pytest.raises(OSError, match="no space"):
        weights.WeightsWriter(layout, tmp_path, None).write(tensors)
