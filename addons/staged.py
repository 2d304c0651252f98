# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint goes, and the directory beside it in which it is made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from .companions import replaced_tokenizer
from .files import publish, remove_tree
from .ranks import is_rank_zero, on_rank_zero


class Staged:
    """A directory in which a checkpoint is made, beside its destination.

    Collective: rank 0 makes and removes it. As a context manager it is gone afterwards in any case.

    Args:
        destination: where the checkpoint will go.
        group: the ranks that save together.
    """

    def __init__(self, destination: Path, group: dist.ProcessGroup | None) -> None:
        self.destination, self.group = destination, group
        self.place = staging_beside(destination)
        on_rank_zero(group, self._make)

    def __enter__(self) -> Staged:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(self, *_error: object) -> None:
        if is_rank_zero(self.group):
            remove_tree(self.place)

    def publish(self, marker: str, owned: Sequence[str] = ()) -> None:
        """Move the files to the destination, on rank 0; those of ``owned`` and tokenizers of earlier saves go."""
        publish(self.place, self.destination, marker=marker, replaces=(*owned, *replaced_tokenizer(self.place)))

    def _make(self) -> None:
        if self.destination.exists() and not self.destination.is_dir():
            raise NotADirectoryError(f"{self.destination} must be a directory, got a file: name another destination")
        # A killed save may have left something.
        remove_tree(self.place)
        self.place.mkdir(parents=True)


def destination_of(directory: str | os.PathLike[str], others: Sequence[str], into_other: bool) -> Path:
    """The destination, absolute and without links: ranks may spell it in several ways (clause RANK-012).

    Args:
        directory: as the caller spells it.
        others: patterns of files by which a checkpoint of the other kind is known: of a model, or of an adapter.
        into_other: whether the caller wants both in one directory.

    Raises:
        ValueError: it is empty, which would mean the working directory; or it holds a checkpoint of the other kind
            (clause POST-013).
    """
    if not os.fspath(directory):
        raise ValueError(f"directory must be the path of a directory, got {directory!r}: name the destination")
    place = Path(directory).resolve()
    there = [] if into_other else sorted(path.name for pattern in others for path in place.glob(pattern))
    if there:
        raise ValueError(
            f"{place} must not hold both a model and an adapter, got {there[0]} there: from_pretrained would apply the "
            "one to the other. Name another directory, or pass into_other_checkpoint=True"
        )
    return place


def staging_beside(destination: Path) -> Path:
    """A directory on the same filesystem as ``destination``, under a name that no reader takes for a checkpoint."""
    if os.path.ismount(destination):
        return destination / ".staging-save"
    name = destination.name
    if len(os.fsencode(name)) > 200:  # of 255 bytes (clause ERR-007)
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return destination.with_name(f".{name}.staging-save")
