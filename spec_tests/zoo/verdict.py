# SPDX-License-Identifier: Apache-2.0
"""What became of one case of the zoo."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

OUTCOMES = ("equal", "as the peer", "refused", "not applicable", "wrong")


@dataclass(frozen=True)
class Verdict:
    """What became of one case.

    Attributes:
        family: of transformers.
        case: the way it was trained or built.
        outcome: one of `OUTCOMES`. ``as the peer``: not equal, and the peer's own save is no
            closer.
        detail: how far off, or why.
        peer_can: of what was refused, whether the peer's own save of it answers as the live model does.
    """

    family: str
    case: str
    outcome: str
    detail: str = ""
    peer_can: bool = False


class NotApplicableError(Exception):
    """A case does not exist for a family; the message says why."""


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, over the size of the numbers where that is above 1; infinite for other shapes."""
    if one.shape != other.shape:
        return float("inf")
    if not one.numel():
        return 0.0
    return float((one.double() - other.double()).abs().max() / max(1.0, float(other.double().abs().max())))


def close(far: float) -> bool:
    """Whether that is equal, up to what another order of the same sums makes of it.

    1.1e-5 was seen on one CPU, of equal tensors, where the LoRA of a Linear is read as that of its weight.
    """
    return far <= 3e-5
