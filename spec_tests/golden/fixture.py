# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for the checkpoints of your own trainer.

In the ``conftest.py`` at the root of your tests: ``pytest_plugins = ["spec_tests.golden.fixture"]``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spec_tests.golden.compare import compared
from spec_tests.golden.recorded import recorded


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--update-golden``."""
    parser.addoption("--update-golden", action="store_true", help="write golden files; such a run is never green")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to record on CI."""
    if config.getoption("--update-golden") and os.environ.get("CI"):
        raise pytest.UsageError("--update-golden: goldens are not recorded on CI")


@pytest.fixture
def checkpoint_golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """``checkpoint_golden(directory, name)`` fails unless the checkpoint is as recorded in ``goldens/<name>``.

    The goldens lie beside the test's file. Compared are every text file and, of weights files, all but the numbers.
    """

    def check(directory: Path, name: str) -> None:
        update = bool(request.config.getoption("--update-golden"))
        if problems := compared(request.path.parent / "goldens" / name, recorded(Path(directory)), update=update):
            pytest.fail("\n".join(problems), pytrace=False)

    return check
