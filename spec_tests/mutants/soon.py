# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for the run of one mutant: a clause has failed with its first test that fails, so that comes soon.

What ``--first`` names comes first. A fault shows in a function of tests rather than in one of its cases: one case of
each comes before the second of any.
"""

from __future__ import annotations

from collections import Counter

import pytest

from spec_tests.harness.outcomes import Status


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the run's own option."""
    parser.addoption("--first", action="append", default=[], metavar="NODEID", help="a test to begin with")


def pytest_configure(config: pytest.Config) -> None:
    """Register the run's own object, which remembers what has failed."""
    config.pluginmanager.register(_Soon(), "addons-spec-soon")


class _Soon:
    def __init__(self) -> None:
        self._failed: set[str] = set()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        seen: Counter[str] = Counter()
        first = {*config.getoption("--first")}
        turns = {}
        for item in items:
            function = item.nodeid.partition("[")[0]
            turns[item] = seen[function]
            seen[function] += 1
        items.sort(key=lambda item: (item.nodeid not in first, turns[item]))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        clauses = {clause for mark in item.iter_markers("clause") for clause in mark.args}
        if clauses & {*item.config.option.clause} <= self._failed:
            # No failure hides behind it: each clause that it could fail, and that the run is about, has failed.
            pytest.skip("what was asked of it has failed")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if getattr(report, "spec_status", None) == Status.FAILED.value:
            self._failed.update(str(value) for name, value in report.user_properties if name == "clause")
