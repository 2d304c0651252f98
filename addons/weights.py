# SPDX-License-Identifier: Apache-2.0
"""Weights files: which tensor goes into which, which rank writes which, and the writing.

Each byte is written once: the header of a safetensors file needs shapes only, so it is written first, and each tensor
is appended as it arrives. At no time does a rank hold more than one tensor of the files it writes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
import torch.distributed as dist

from .files import new_file
from .gathering import Held, Source, Transfer, flat, gathered
from .ranks import group_rank

INDEX = "model.safetensors.index.json"


class SafetensorsFile:
    """A safetensors file that is written from its header to its last tensor.

    The header names the framework, by which readers choose theirs (clauses ADP-024, IDX-011).

    Args:
        path: of the file, which is made.
        tensors: name -> dtype and shape of all tensors that will be in it.

    Raises:
        TypeError: safetensors has no such dtype.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Held]) -> None:
        # The widest dtypes first, as safetensors itself does: each tensor then starts at a multiple of its width.
        self.names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in self.names:
            held, start = tensors[name], end
            end += held.nbytes
            header[name] = {
                "dtype": safetensors_dtype(held.dtype, name),
                "shape": held.shape,
                "data_offsets": (start, end),
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._left = len(self.names)
        self._file: BinaryIO = new_file(path)
        self._file.write(len(text).to_bytes(8, "little") + text)

    @property
    def complete(self) -> bool:
        """Whether all tensors have been written."""
        return self._left == 0

    def append(self, tensor: torch.Tensor) -> None:
        """Write the next tensor, in the order of `names`: its bytes, whatever they mean (clause IDX-012)."""
        self._left -= 1
        if tensor.numel():
            self._file.write(flat(tensor.contiguous()).numpy().data)

    def close(self) -> None:
        """Have the file on the disk, and close it."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write whole tensors into one file, each in its own dtype (clause ADP-020)."""
    file = SafetensorsFile(path, {name: Held(t.dtype, tuple(t.shape), Source(())) for name, t in tensors.items()})
    with contextlib.closing(file):
        for name in file.names:
            file.append(tensors[name])


@cache
def _code(dtype: torch.dtype) -> str | None:
    # What the installed safetensors calls a dtype, said by itself.
    try:
        content = safetensors.torch.save({"": torch.empty(0, dtype=dtype)})
    except Exception:  # noqa: BLE001 - of several types, all of them its way to say that it knows no such dtype
        return None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    code: str = header[""]["dtype"]
    # Most readers refuse a whole file with complex numbers (clause IDX-014); two in a byte have another shape there.
    return None if dtype.is_complex or code == "F4" else code


def safetensors_dtype(dtype: torch.dtype, name: str) -> str:
    """What safetensors calls a dtype.

    Raises:
        TypeError: it has none that readers know; the message names the tensor.
    """
    if (code := _code(dtype)) is None:
        raise TypeError(f"{name!r} must have a dtype that safetensors files hold, got {dtype}: convert it")
    return code


@dataclass
class Layout:
    """Which tensors go into which weights files, and which rank writes each file; the same on every rank.

    Attributes:
        files: names of the tensors of each file, in the order of the files.
        held: name -> dtype and shape.
        order: the transfers to the writers, in which all files grow side by side.
        writers: for each file the rank that writes it.
    """

    files: list[list[str]]
    held: dict[str, Held]
    order: list[Transfer] = field(default_factory=list)
    writers: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, transfers: Iterable[Transfer], max_shard_bytes: int, ranks: int) -> Layout:
        """Fill the files in the order of names, and deal them to ``ranks`` ranks, the largest first."""
        every = {transfer.name: transfer for transfer in transfers}
        held = {name: transfer.held for name, transfer in every.items()}
        indices = file_indices({name: one.nbytes for name, one in held.items()}, max_shard_bytes)
        files: list[list[str]] = [[] for _ in range(max(indices.values(), default=0))]
        for name in sorted(held, key=lambda name: (-held[name].dtype.itemsize, name)):
            files[indices[name] - 1].append(name)
        layout = cls(files, held, writers=[0] * len(files))
        load = [0] * ranks
        for at in sorted(range(len(files)), key=lambda at: (-layout.size(at), at)):
            layout.writers[at] = load.index(min(load))
            load[layout.writers[at]] += layout.size(at)
        places = []
        written = [0] * ranks
        for at, names in enumerate(files):
            writer = layout.writers[at]
            for name in names:
                places.append((written[writer], writer, replace(every[name], writer=writer)))
                written[writer] += held[name].nbytes
        layout.order = [transfer for _, _, transfer in sorted(places, key=lambda place: place[:2])]
        return layout

    def size(self, at: int) -> int:
        """Bytes of the tensors of a file."""
        return sum(self.held[name].nbytes for name in self.files[at])

    def file_name(self, at: int) -> str:
        """As transformers names the files of a checkpoint that has several."""
        return f"model-{at + 1:05d}-of-{len(self.files):05d}.safetensors"

    def indices(self) -> dict[str, int]:
        """Tensor name -> number of its file, from 1."""
        return {name: at + 1 for at, names in enumerate(self.files) for name in names}

    def index(self) -> dict[str, Any]:
        """The content of the file by which readers find a tensor (clauses IDX-003, IDX-007 to IDX-009)."""
        weight_map = {name: self.file_name(at) for at, names in enumerate(self.files) for name in names}
        return {"metadata": {"total_size": sum(map(self.size, range(len(self.files))))}, "weight_map": weight_map}


def file_indices(sizes: dict[str, int], max_shard_bytes: int) -> dict[str, int]:
    """Tensor name -> number of its weights file, from 1, filled in the order of names (clause IDX-003)."""
    indices, index, filled = {}, 1, 0
    for name in sorted(sizes):
        if filled and filled + sizes[name] > max_shard_bytes:
            index, filled = index + 1, 0
        filled += sizes[name]
        indices[name] = index
    return indices


class WeightsWriter:
    """This rank's part in writing the files of a layout into a directory.

    Args:
        layout: of the whole checkpoint.
        directory: where the files go.
        group: the ranks that save together.
    """

    def __init__(self, layout: Layout, directory: Path, group: dist.ProcessGroup | None) -> None:
        self._layout, self._directory, self._group = layout, directory, group
        self._files = iter([at for at, writer in enumerate(layout.writers) if writer == group_rank(group)])
        self._file: SafetensorsFile | None = None
        self._copies: list[torch.Tensor] = []

    def gather_and_write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Append each tensor to its file as it arrives. Collective; raises as `gathered`."""
        try:
            gathered(tensors, self._layout.order, self._group, self._append)
        finally:
            self._close()

    def gather(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy what this rank will write, as it is now (clause POST-011). Collective; raises as `gathered`."""
        gathered(tensors, self._layout.order, self._group, self._copy)

    def write(self) -> None:
        """Write what `gather` copied. Not collective: it may run beside a step, or another save (clause POST-010)."""
        try:
            self._copies.reverse()
            while self._copies:
                self._append("", self._copies.pop())
        finally:
            self._close()

    def _copy(self, _name: str, tensor: torch.Tensor) -> None:
        self._copies.append(tensor.clone(memory_format=torch.contiguous_format))

    def _append(self, _name: str, tensor: torch.Tensor) -> None:
        # The transfers come in the order of the files, and within a file in that of its tensors.
        if self._file is None:
            at = next(self._files)
            held = {name: self._layout.held[name] for name in self._layout.files[at]}
            self._file = SafetensorsFile(self._directory / self._layout.file_name(at), held)
        self._file.append(tensor)
        if self._file.complete:
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
