# SPDX-License-Identifier: Apache-2.0
"""What a row of the bench is, and what it came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spec_tests.bench.pairing import Paired
    from spec_tests.implementations.base import Implementation


class BenchError(Exception):
    """A row could not be measured, or measured something else than it says."""


class NotHereError(Exception):
    """This machine lacks what the row is about; the message says what."""


@dataclass(frozen=True)
class Places:
    """Where rows write, and where their peer comes from.

    Attributes:
        disk: a directory on an ordinary filesystem.
        memory: a directory on tmpfs; None where there is none.
        nemo: gives the peer's binding, which is installed on first use.
    """

    disk: Path
    memory: Path | None
    nemo: Callable[[], Implementation]

    @property
    def fast(self) -> Path:
        """Tmpfs where there is one, so that a row is about the work and not about the disk."""
        return self.memory or self.disk

    def on(self, kind: str) -> Path:
        """The directory of that kind, ``disk`` or ``tmpfs``.

        Raises:
            NotHereError: there is no tmpfs.
        """
        if kind == "disk":
            return self.disk
        if self.memory is None:
            raise NotHereError("there is no tmpfs that can be written here")
        return self.memory


@dataclass(frozen=True)
class Figures:
    """What a row measured.

    Attributes:
        subject: the reference's median, in ``unit``.
        peer: the median of what stands beside it, in ``unit``.
        ratios: subject over peer, pair by pair.
        ratio: the ratio that is held against the limit.
        unit: ``s`` or ``bytes``.
        details: further figures, plain data.
    """

    subject: float
    peer: float
    ratios: tuple[float, ...]
    ratio: float
    unit: str = "s"
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: what the command calls it.
        work: what is measured, in words.
        beside: what it is compared with, in words.
        limit: the highest ratio that is good enough.
        measure: measures it.
        enough: an amount of the subject, in the row's unit, that is good enough whatever the ratio.
    """

    name: str
    work: str
    beside: str
    limit: float
    measure: Callable[[Places], Figures]
    enough: float | None = None

    def is_over(self, figures: Figures) -> bool:
        """Whether the figures are worse than the row allows."""
        good_enough = self.enough is not None and figures.subject <= self.enough
        return figures.ratio > self.limit and not good_enough


def timed(paired: Paired, **details: Any) -> Figures:
    """The figures of a row that compares times."""
    subject, peer = paired.medians
    return Figures(subject, peer, tuple(paired.ratios), paired.ratio, details=details)
