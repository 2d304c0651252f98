# SPDX-License-Identifier: Apache-2.0
"""All cases of the zoo, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from spec_tests.implementations.base import Implementation
from spec_tests.zoo import adapters, wholes
from spec_tests.zoo.verdict import Verdict


def _adapter(mode: adapters.Mode, impl: Implementation, family: str, directory: Path) -> Verdict:
    return adapters.judge(impl, family, mode, directory)


def _whole(case: str, impl: Implementation, family: str, directory: Path) -> Verdict:
    return wholes.judge(impl, family, case, directory)


CASES: dict[str, Callable[[Implementation, str, Path], Verdict]] = {
    **{name: partial(_adapter, mode) for name, mode in adapters.MODES.items()},
    **{case: partial(_whole, case) for case in wholes.CASES},
}
"""Name -> judge: of adapters, then of whole models."""
