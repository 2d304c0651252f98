# SPDX-License-Identifier: Apache-2.0
"""The pytest hooks of one run, from the collected tests to the verdict.

Under xdist the workers collect, run and judge single tests; the controller counts. What it needs travels in
two ways: the plan in the workers' output, the status of a test as an attribute of its report.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spec_tests.harness.clauses import Clause
from spec_tests.harness.counting import Ledger, PlannedTest
from spec_tests.harness.environment import ReaderError
from spec_tests.harness.gpus import gpus
from spec_tests.harness.known_failures import passing, unmatched
from spec_tests.harness.outcomes import ClauseResult, Conditions, Outcome, Status, Verdict, fold, verdict
from spec_tests.harness.profiles import spare_shrinking
from spec_tests.harness.report import Run, as_dict, as_json, command, summary, table
from spec_tests.harness.results import compared
from spec_tests.harness.selection import Selection, nearest

PLAN = "addons_spec_plan"
LACKING = "addons_spec_lacking_gpus"
OPT_IN = ("bench", "nccl", "real")
"""Markers of tests that run only when ``-m`` asks for some."""
_CLAUSES: pytest.StashKey[tuple[Clause, ...]] = pytest.StashKey()
_STATUS: pytest.StashKey[Status] = pytest.StashKey()
# Exit codes that say how tests went; any other says that there was no proper run, and stays.
_JUDGEABLE = {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED}


@dataclass(frozen=True)
class Settings:
    """What the run is about, once the options are read; ``recorded`` is the directory to compare it with, if any."""

    clauses: dict[str, Clause]
    selection: Selection
    conditions: Conditions
    run: Run
    conformance: bool
    strict: bool
    report_json: Path | None
    recorded: Path | None


EVERY = 5.0
"""Seconds after which the report is written again while the run goes on."""


class SpecSession:
    """A pytest plugin: one object a process and a run."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config = config
        self.settings = settings
        self.ledger = Ledger()
        self.results: list[ClauseResult] = []
        self.verdict: Verdict | None = None
        self._collected: list[pytest.Item] = []
        self._recorded: list[str] = []
        self._lacking_gpus = 0
        self._written = time.monotonic()

    @property
    def _is_worker(self) -> bool:
        return hasattr(self.config, "workerinput")

    # Collection: in the workers under xdist, else here.

    @pytest.hookimpl(wrapper=True)
    def pytest_pycollect_makeitem(self, collector: pytest.Collector) -> Generator[None, Any, Any]:
        """Refuse a test that names a clause which does not exist, as an error of its file's collection."""
        made = yield
        for item in made if isinstance(made, list) else [made]:
            for clause_id in _clause_ids(item) if isinstance(item, pytest.Item) else ():
                if clause_id not in self.settings.clauses:
                    hint = nearest(clause_id, self.settings.clauses)
                    raise collector.CollectError(f"{item.nodeid}: unknown clause {clause_id!r}; {hint}")
        return made

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Link the tests to their clauses, and leave out those that the run is not about."""
        self._collected = list(items)
        left_out = []
        for item in items:
            clauses = tuple(self.settings.clauses[clause_id] for clause_id in _clause_ids(item))
            item.stash[_CLAUSES] = clauses
            item.user_properties += [("clause", clause.id) for clause in clauses]
            item.stash[_STATUS] = self._wanted(item, clauses)
            if item.stash[_STATUS] is not Status.NOT_RUN:
                left_out.append(item)
        if left_out:
            self.config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in set(left_out)]
        items.sort(key=lambda item: item.get_closest_marker("long") is None)
        for test in {item.obj for item in items if isinstance(item, pytest.Function) and self._known(item)}:
            spare_shrinking(test)

    def _known(self, item: pytest.Item) -> bool:
        """Whether a failure of the test would be a known one."""
        clauses = [clause.id for clause in item.stash.get(_CLAUSES, ())]
        return bool(clauses) and set(clauses) <= self._reasons(item.nodeid, clauses).keys()

    def _reasons(self, nodeid: str, clause_ids: list[str]) -> dict[str, str]:
        """Why the test fails, by those of its clauses that are known to fail."""
        entries = self.settings.conditions.known_failures
        return {entry.clause: entry.reason for entry in entries if entry.matches(nodeid, clause_ids)}

    def needs(self, item: pytest.Item) -> frozenset[str] | None:
        """What a test says it needs, by its clauses and its marks; None for a test of no clause."""
        clauses = item.stash.get(_CLAUSES, ())
        return _needs(item).union(*(clause.needs for clause in clauses)) if clauses else None

    def _wanted(self, item: pytest.Item, clauses: tuple[Clause, ...]) -> Status:
        if not self.config.option.markexpr and any(item.get_closest_marker(name) for name in OPT_IN):
            return Status.DESELECTED
        if (mark := item.get_closest_marker("nccl")) and gpus() < mark.args[0]:
            self._lacking_gpus += 1
            return Status.DESELECTED
        return self.settings.selection.wants(clauses, self.settings.conditions, _needs(item))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write down what is going to run, after every other deselection."""
        selected = {item.nodeid for item in session.items}
        plan: list[PlannedTest] = []
        for item in self._collected:
            status = item.stash.get(_STATUS, Status.NOT_RUN)
            if status is Status.NOT_RUN and item.nodeid not in selected:
                status = Status.DESELECTED
            plan.append((item.nodeid, tuple(clause.id for clause in item.stash.get(_CLAUSES, ())), status.value))
        self.ledger.plan(plan)
        if self._is_worker:
            output = self.config.workeroutput  # type: ignore[attr-defined]  # xdist puts it there
            output.update({PLAN: plan, LACKING: self._lacking_gpus})

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over the plan of an xdist worker that has ended."""
        self.ledger.plan(getattr(node, "workeroutput", {}).get(PLAN, ()))
        self._lacking_gpus = getattr(node, "workeroutput", {}).get(LACKING, self._lacking_gpus)

    # Single tests: judged where they run, counted in the controller.

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Turn skips into failures and known failures into expected ones; say how to repeat a failure."""
        report = yield
        clauses = item.stash.get(_CLAUSES, ())
        if clauses:
            self._judge(report, [clause.id for clause in clauses], call.excinfo)
        return report

    def _judge(self, report: pytest.TestReport, clause_ids: list[str], raised: Any = None) -> None:
        status = None
        if hasattr(report, "wasxfail") or report.skipped:
            status = _as_failure(report)
        elif report.failed and raised is not None and raised.errisinstance(ReaderError):
            # An error of the environment, never the implementation's.
            report.longrepr = f"{Outcome.NOT_TESTABLE.value}: {raised.value}"
            status = Status.SKIPPED
        elif report.failed:
            status = Status.FAILED
        elif report.when == "call":
            status = Status.PASSED
        report.spec_status = status.value if status else None  # type: ignore[attr-defined]
        known = self._reasons(report.nodeid, clause_ids)
        if report.failed and known.keys() >= set(clause_ids):
            report.outcome = "skipped"
            report.wasxfail = "; ".join(known[clause_id] for clause_id in clause_ids)
        elif report.failed:
            report.sections += [(clause_id, self.settings.clauses[clause_id].text) for clause_id in clause_ids]
            if (kept := self.config.option.keep_trees) is not None:
                report.sections.append(("what it wrote is kept in", str(kept)))
            report.sections.append(("to repeat it alone", command(self.settings.run, report.nodeid, clause_ids)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count. A test whose worker crashed has a report without a status."""
        status = getattr(report, "spec_status", None) or (Status.FAILED if report.failed else None)
        if status:
            # A worker tells its plan when it ends, and an interrupted one never does.
            self.ledger.learn(report.nodeid, [str(value) for name, value in report.user_properties if name == "clause"])
            self.ledger.report(report.nodeid, Status(status))
        wanted = self.settings.report_json is not None and not self._is_worker
        if wanted and time.monotonic() - self._written > EVERY:
            self._write(complete=False)

    # The end: in the controller only.

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Fold the counts, write the report, and let the verdict decide the exit code."""
        if self._is_worker or self.config.option.collectonly:
            return
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self._lacking_gpus:
            session.exitstatus = pytest.ExitCode.OK  # what a machine lacks is no fault
        self.verdict = self._fold(exitstatus)
        report = self._write(complete=exitstatus in _JUDGEABLE)
        if self.settings.conformance and exitstatus in _JUDGEABLE:
            session.exitstatus = pytest.ExitCode.OK if self.verdict.conformant else pytest.ExitCode.TESTS_FAILED
        elif exitstatus == pytest.ExitCode.OK and any(r.outcome is Outcome.STALE for r in self.results):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        whole = not self.settings.selection.partial and self.settings.selection.level is None
        if self.settings.recorded is not None and whole and exitstatus in _JUDGEABLE:
            differing, what = compared(self.settings.recorded, report)
            self._recorded = [*differing, what]
            if differing:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _fold(self, exitstatus: int) -> Verdict:
        reported = [clause for clause in self.settings.clauses.values() if self.settings.selection.includes(clause)]
        cases = self.ledger.cases()
        self.results = fold(reported, cases, self.settings.conditions)
        return verdict(
            self.results,
            [case for case in cases if any(clause.id in case.clauses for clause in reported)],
            strict=self.settings.strict,
            partial=self.settings.selection.partial,
            problems=self._problems(exitstatus),
        )

    def _write(self, *, complete: bool) -> dict[str, Any]:
        """The report so far, as plain data; written where it was asked for."""
        reached = self.verdict or self._fold(pytest.ExitCode.OK)
        report = as_dict(self.settings.run, self.results, reached, self.ledger.cases(), complete)
        if self.settings.report_json is not None:
            self.settings.report_json.write_text(as_json(report), encoding="utf-8")
        self._written = time.monotonic()
        return report

    def _problems(self, exitstatus: int) -> list[str]:
        known, problems = self.settings.conditions.known_failures, list[str]()
        # A run of a few tests by hand neither collects all tests of a clause nor consists of clauses only.
        if not self.settings.conformance:
            return problems
        # Of single tests that were asked for, an entry need not be about one.
        if not any("::" in argument for argument in self.config.args):
            absent = unmatched(known, self.ledger.collected)
            claimed = [(c.nodeid, c.clauses) for c in self.ledger.cases() if c.status is not Status.UNCLAIMED]
            problems += [f"known failure that matches no test: {entry}" for entry in absent]
            idle = (entry for entry in unmatched(known, claimed) if entry not in absent)
            problems += [f"known failure of what is not claimed: {entry}" for entry in idle]
        problems += passing(known, [(c.nodeid, c.clauses) for c in self.ledger.cases() if c.status is Status.PASSED])
        problems += [f"failed outside any clause: {nodeid}" for nodeid in self.ledger.failures_outside_clauses()]
        if exitstatus not in _JUDGEABLE:
            problems.append(f"pytest ended with exit code {int(exitstatus)}")
        return problems

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the table and the verdict; outside a conformance run only what needs attention."""
        if self.verdict is None or not (self.settings.conformance or self.ledger.collected or self._lacking_gpus):
            return
        shown = self.results
        if not self.settings.conformance and terminalreporter.verbosity < 1:
            shown = [r for r in shown if r.outcome not in {Outcome.PASS, Outcome.NOT_RUN}]
        terminalreporter.section("specification")
        if shown:
            terminalreporter.write_line(table(shown))
        lines = summary(self.results, self.verdict)
        if not self.settings.conformance and any(result.outcome is Outcome.NOT_RUN for result in self.results):
            # A few tests by hand: the counts are of use, a verdict over what was not asked for is not.
            lines = f"{lines.splitlines()[0]}; no verdict on a part (python -m spec_tests runs the whole)"
        terminalreporter.write_line(lines)
        if self._lacking_gpus:
            terminalreporter.write_line(
                f"NOT-RUN: {self._lacking_gpus} tests over NCCL need more GPUs than there are here ({gpus()})"
            )
        for line in filter(None, self._recorded):
            terminalreporter.write_line(line)


def _clause_ids(item: pytest.Item) -> list[str]:
    """The clauses that a test is marked with, in the order of the marks, each once."""
    marks = reversed(list(item.iter_markers("clause")))
    return list(dict.fromkeys(clause_id for mark in marks for clause_id in mark.args))


def _needs(item: pytest.Item) -> frozenset[str]:
    """What a test is marked to need of the implementation; what its clauses need comes on top."""
    return frozenset(name for mark in item.iter_markers("needs") for name in mark.args)


def _as_failure(report: pytest.TestReport) -> Status:
    """A skip or an xfail mark on a test of a clause: both would read as success, and neither is."""
    if hasattr(report, "wasxfail"):
        reason = "marked xfail; known failures stand beside the implementation's binding"
        del report.wasxfail
    else:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{Outcome.NOT_TESTABLE.value}: {reason}"
    return Status.SKIPPED
