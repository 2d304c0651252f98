# SPDX-License-Identifier: Apache-2.0
"""Weights files: which tensor goes into which, which rank writes which, and the writing.

Each byte is written once, straight into its place: the header of a safetensors file needs shapes only. At no time does
a rank hold more than one tensor of the files it writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist

from .files import new_file
from .gathering import Transfer, flat, gathered
from .holdings import Held, holdings
from .ranks import agree, everywhere, group_rank

INDEX = "model.safetensors.index.json"


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write whole tensors into one file, each in its own dtype (clause ADP-020)."""
    head, starts = safetensors_header(dict(holdings(tensors, None)))
    with new_file(path) as file:
        file.write(head)
        for name in starts:
            if tensors[name].numel():
                file.write(_content(tensors[name]))


def safetensors_header(tensors: Mapping[str, Held]) -> tuple[bytes, dict[str, int]]:
    """The head of a file that holds these tensors, and where in the file each starts, in the order of the file.

    The header names the framework, by which readers choose theirs (clauses ADP-024, IDX-011).

    Raises:
        TypeError: safetensors has no such dtype.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    # The widest dtypes first, as safetensors itself does: each tensor then starts at a multiple of its width.
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        held, starts[name] = tensors[name], end
        end += held.nbytes
        code = safetensors_dtype(held.dtype, name)
        header[name] = {"dtype": code, "shape": held.shape, "data_offsets": (starts[name], end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + start for name, start in starts.items()}


def _content(tensor: torch.Tensor) -> memoryview:
    return flat(tensor.contiguous()).numpy().data


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
        heads: for each file its header, and where in it each tensor starts (`safetensors_header`).
        order: the transfers to the writers, in which all files grow side by side.
        writers: for each file the rank that writes it.
    """

    files: list[list[str]]
    held: dict[str, Held]
    heads: list[tuple[bytes, dict[str, int]]]
    order: list[Transfer] = field(default_factory=list)
    writers: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, transfers: Iterable[Transfer], max_shard_bytes: int, ranks: int) -> Layout:
        """Fill the files in the order of names, and deal them to ``ranks`` ranks, the largest first."""
        every = {transfer.name: transfer for transfer in transfers}
        held = {name: transfer.held for name, transfer in every.items()}
        indices = file_indices({name: one.nbytes for name, one in held.items()}, max_shard_bytes)
        files: list[list[str]] = [[] for _ in set(indices.values())]
        for name, index in indices.items():
            files[index - 1].append(name)
        layout = cls(files, held, [safetensors_header({name: held[name] for name in names}) for names in files])
        load, places = [0] * ranks, []
        for at in sorted(range(len(files)), key=layout.size, reverse=True):
            layout.writers[at] = writer = load.index(min(load))
            for name in layout.heads[at][1]:
                places.append((load[writer], name, writer))
                load[writer] += held[name].nbytes
        layout.order = [replace(every[name], writer=writer) for _, name, writer in sorted(places)]
        return layout

    def size(self, at: int) -> int:
        """Bytes of the tensors of a file."""
        return sum(self.held[name].nbytes for name in self.files[at])

    def file_name(self, at: int) -> str:
        """As transformers names the files of a checkpoint that has several."""
        return f"model-{at + 1:05d}-of-{len(self.files):05d}.safetensors"

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

    Ranks of one machine write their shards side by side, each into its place in the files. Ranks of several machines
    send them to the file's writer: not every shared filesystem lets two machines write neighbouring bytes.

    Args:
        layout: of the whole checkpoint.
        directory: where the files go, which all ranks see.
        group: the ranks that save together.
    """

    def __init__(self, layout: Layout, directory: Path, group: dist.ProcessGroup | None) -> None:
        self._layout, self._directory, self._group = layout, directory, group
        self._in_place = len(agree(group, _machine)[1]) == 1
        self._places = {
            name: (at, start) for at, (_, starts) in enumerate(layout.heads) for name, start in starts.items()
        }
        self._files: dict[int, int] = {}
        self._copies: list[tuple[str, torch.Tensor, int]] = []

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write every tensor. Collective; raises as `gathered`."""
        try:
            everywhere(self._group, self._write_heads)
            gathered(tensors, self._layout.order, self._group, self._write, self._in_place)
        except BaseException:
            with contextlib.suppress(OSError):
                self._close()
            raise
        everywhere(self._group, self._close)

    def copy(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy what this rank will write, as it is now (clause POST-011). Collective; raises as `gathered`."""

        def copy(name: str, tensor: torch.Tensor, start: int) -> None:
            # What came from a device or another rank, or was cast, is a copy already.
            if _same_memory(tensor, tensors.get(name)):
                tensor = tensor.clone()
            self._copies.append((name, tensor, start))

        gathered(tensors, self._layout.order, self._group, copy, self._in_place)

    def write_copies(self) -> None:
        """Write what was copied. Not collective: it may run beside a step, or another save (clause POST-010)."""
        try:
            self._write_heads()
            while self._copies:
                self._write(*self._copies.pop())
        finally:
            self._close()

    def _write_heads(self) -> None:
        for at, (head, _) in enumerate(self._layout.heads):
            if self._layout.writers[at] == group_rank(self._group):
                self._write_at(at, memoryview(head), 0)

    def _write(self, name: str, tensor: torch.Tensor, start: int) -> None:
        # The bytes, whatever they mean (clause IDX-012).
        if tensor.numel():
            at, begin = self._places[name]
            self._write_at(at, _content(tensor), begin + start)

    def _write_at(self, at: int, content: memoryview, start: int) -> None:
        if at not in self._files:
            self._files[at] = os.open(self._directory / self._layout.file_name(at), os.O_WRONLY | os.O_CREAT, 0o666)
        while content:
            written = os.pwrite(self._files[at], content, start)
            content, start = content[written:], start + written

    def _close(self) -> None:
        files, self._files = self._files, {}
        with contextlib.ExitStack() as stack:
            for file in files.values():
                stack.callback(os.close, file)
            for file in files.values():
                os.fsync(file)


def _same_memory(tensor: torch.Tensor, live: Any) -> bool:
    local = live.to_local() if hasattr(live, "to_local") else live
    return local is not None and tensor.untyped_storage().data_ptr() == local.untyped_storage().data_ptr()


def _machine() -> tuple[None, bytes | str]:
    # The same for all processes that share a kernel, and with it what they have written and not yet flushed.
    path = Path("/proc/sys/kernel/random/boot_id")
    return None, path.read_bytes() if path.exists() else platform.node()
