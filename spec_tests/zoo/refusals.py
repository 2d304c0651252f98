# SPDX-License-Identifier: Apache-2.0
"""What may be refused, and why; and how often where the peer's own save works: a number that may only fall."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spec_tests.zoo.verdict import Verdict


@dataclass(frozen=True)
class Refusal:
    """A kind of refusal.

    Attributes:
        message: a pattern of what the error says.
        reason: why the adapter or model is refused.
        most: in how many cases of the default row it may be, of those that the peer saves right.
    """

    message: str
    reason: str
    most: int = 0


REFUSALS = {
    "DoRA beside experts": Refusal(
        "DoRA magnitudes",
        "in a model with experts, dense layers called like an expert's are listed as parameters (TGT-019), and LoRA of "
        "parameters has no magnitude",
        33,
    ),
}


def reason_of(verdict: Verdict) -> str:
    """The kind of a refusal; empty for one that is not in the list."""
    return next((name for name, one in REFUSALS.items() if re.search(one.message, verdict.detail)), "")
