# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin of the suite: options, markers, header and fixtures. Wiring only.

Loaded with ``-p spec_tests.plugin``, so that its options work from any directory.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from spec_tests.consumers import clean_process, server, stand_in
from spec_tests.harness import environment, profiles
from spec_tests.harness.clauses import LEVELS, SpecError, load_clauses, spec_version
from spec_tests.harness.directories import FreshDirs, emptied, file_name
from spec_tests.harness.known_failures import KnownFailureError, check_consistent
from spec_tests.harness.large_pages import use_large_pages
from spec_tests.harness.outcomes import Conditions
from spec_tests.harness.paths import fixtures_dir
from spec_tests.harness.report import Run
from spec_tests.harness.selection import Selection, listed, nearest
from spec_tests.harness.session import Settings, SpecSession
from spec_tests.implementations.base import PARTS, Implementation
from spec_tests.implementations.guard import Guard
from spec_tests.loading import load

ENVIRONMENT_PREFIX = "ADDONS_SPEC_"
MARKERS = (
    "clause(*ids): the clauses of the specification that the test is about",
    "needs(*names): parts of the implementation, or capabilities, without which the test is left out",
    "long: starts programs and takes seconds; the first to begin, so that no worker is left with it at the end",
    "nccl(count): needs that many CUDA devices, one a rank; runs only with -m",
    "bench: a benchmark; runs only with -m",
    "real: works on a real pretrained checkpoint (extra `real`); runs only with -m",
)
TIMEOUT = 300.0
"""Seconds for one test: ranks that wait for each other for ever are a failure, not a pause."""
FORK_OFTEN = 100
"""Above so many tests, the second that large pages take comes back in quicker forks."""
_IMPLEMENTATION: pytest.StashKey[Implementation] = pytest.StashKey()
_GUARD: pytest.StashKey[Guard] = pytest.StashKey()
_SESSION: pytest.StashKey[SpecSession] = pytest.StashKey()
_READERS: pytest.StashKey[tuple[str, bytes]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options of a run."""
    group = parser.getgroup("spec", "specification of the checkpoint add-ons")
    group.addoption(
        "--impl",
        default=os.environ.get(f"{ENVIRONMENT_PREFIX}IMPL", "reference"),
        help="implementation: reference, vendored, a copy's directory, path/file.py[:attr], package.module[:attr]",
    )
    group.addoption("--area", action="append", default=[], help="only clauses of this area, or of A,B (repeatable)")
    group.addoption("--clause", action="append", default=[], help="only this clause (repeatable)")
    group.addoption("--level", choices=LEVELS, help="only this level and those it includes")
    group.addoption("--seed", type=int, help="draw examples from this seed")
    group.addoption("--keep-trees", type=Path, metavar="DIR", help="keep what the tests write, in DIR")
    group.addoption("--report-json", type=Path, metavar="PATH", help="write the report as JSON")
    group.addoption("--check-results", action="store_true", help="compare the outcomes with the recorded ones")
    group.addoption("--results-dir", type=Path, metavar="DIR", help="where they are recorded (fixtures/results)")
    # Not `--strict`, which is pytest's own; `python -m spec_tests --strict` means this one.
    group.addoption("--strict-should", action="store_true", help="SHOULD counts as MUST")
    group.addoption("--conformance", action="store_true", help="the verdict decides the exit code")
    group.addoption("--spec-dir", type=Path, metavar="DIR", help="read the clauses from DIR (for tests of the suite)")
    parser.addini("spec_workers", "at most so many xdist workers when -n is not given", default="0")


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """Distribute by default where xdist is there, within the machine's size; ``-n`` and ``--pdb`` win."""
    option = config.option
    # xdist runs this hook in its workers too, with its options unset: a worker that started workers would
    # be the first of endlessly many.
    # One more than cores: tests wait for ranks, readers and processes of their own.
    workers = 0 if hasattr(config, "workerinput") else min(int(config.getini("spec_workers")), _cores() + 1)
    if workers > 1 and getattr(option, "numprocesses", 0) is None and not option.usepdb and option.dist == "no":
        option.numprocesses = workers
        option.dist = "worksteal"
    if getattr(option, "numprocesses", 0):
        # torch's threads wait for work busily: workers that share the cores would lose half of their time to them.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Load the clauses and the implementation, and register the run."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    option = config.option
    if getattr(option, "help", False):
        return
    if readers := getattr(config, "workerinput", {}).get("readers"):
        clean_process.use(*readers)
    gc.disable()  # nothing of what is imported from here on is garbage, and looking for some takes a tenth of the time
    profiles.activate(conformance=option.conformance, seed=option.seed)
    if option.seed is not None and getattr(option, "hypothesis_seed", option.seed) is None:
        option.hypothesis_seed = str(option.seed)
    if config.pluginmanager.hasplugin("timeout") and option.timeout is None and not config.getini("timeout"):
        option.timeout = TIMEOUT
    try:
        settings = _settings(config)
    except (SpecError, KnownFailureError) as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[_SESSION] = SpecSession(config, settings)
    config.pluginmanager.register(config.stash[_SESSION], "addons-spec-session")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Let workers begin as forks of the server of readers, where it has imported what they would."""
    if _READERS in config.stash:
        address, key = config.stash[_READERS]
        os.environ[stand_in.KEY] = key.hex()
        for spec in specs:
            spec.python = stand_in.command(address)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give a worker of xdist the one server of readers that all of them ask."""
    stash = node.config.stash
    if _READERS not in stash:
        stash[_READERS] = server.started()
    node.workerinput["readers"] = stash[_READERS]


def _settings(config: pytest.Config) -> Settings:
    option = config.option
    clauses = load_clauses(option.spec_dir)
    selection = Selection(listed(option.area), tuple(option.clause), option.level)
    if problem := selection.problem(clauses):
        raise pytest.UsageError(problem)
    # After what can be refused at once: importing takes seconds.
    if _forks_workers(config):
        config.stash[_READERS] = server.started(at_once=True)
    implementation = load(option.impl)
    config.stash[_GUARD] = Guard()
    config.stash[_IMPLEMENTATION] = config.stash[_GUARD].around(implementation)
    needed = PARTS.union(*(clause.needs for clause in clauses.values()))
    if unknown := sorted(implementation.capabilities - needed):
        raise pytest.UsageError(
            f"--impl {option.impl}: claims {unknown[0]!r}, which no clause needs; {nearest(unknown[0], needed)}"
        )
    known = [entry for entry in implementation.known_failures if entry.holds_for(implementation.version)]
    check_consistent(known)
    if option.report_json is not None and not option.report_json.absolute().parent.is_dir():
        raise pytest.UsageError(f"--report-json {option.report_json}: its directory must be there: make it first")
    conditional = {condition.package for clause in clauses.values() for condition in clause.applies}
    return Settings(
        clauses=clauses,
        selection=selection,
        conditions=Conditions(implementation.claims, tuple(known), environment.versions(sorted(conditional))),
        run=Run(
            implementation=option.impl,
            name=implementation.name,
            version=implementation.version,
            origin=implementation.origin,
            spec_version=spec_version(clauses),
            seed=option.seed,
            packages=environment.versions(),
        ),
        conformance=option.conformance,
        strict=option.strict_should,
        report_json=option.report_json,
        recorded=(option.results_dir or fixtures_dir() / "results") if option.check_results or _on_ci(option) else None,
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is under test, with everything that a reader needs to repeat the run."""
    session = config.stash.get(_SESSION, None)
    if session is None:
        return []
    run = session.settings.run
    seed = "derandomised" if run.seed is None else f"seed {run.seed}"
    if run.seed is None and not session.settings.conformance:
        seed = "drawn"
    return [
        f"implementation: {run.name} {run.version} ({run.origin}), --impl {run.implementation}",
        f"specification: {run.spec_version}, {len(session.settings.clauses)} clauses; examples: {seed}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in run.packages.items()),
        # All that start so, also those that nothing reads: that makes a typo visible.
        *(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(ENVIRONMENT_PREFIX)),
    ]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Prepare for forks: garbage collection passes over what was imported, and the pages are few."""
    gc.collect()
    gc.freeze()
    gc.enable()
    if len(session.items) > FORK_OFTEN:
        use_large_pages()


@pytest.hookimpl(tryfirst=True)
def pytest_keyboard_interrupt(excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Leave out of the traceback what Python 3.11 has no line for: pytest 9 fails on it, and ends as a whole run."""
    excinfo.traceback = excinfo.traceback.filter(_has_line)


def _has_line(entry: Any) -> bool:
    try:
        return entry.lineno >= 0
    except TypeError:
        return False


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start every test from the same random state, so that it draws the same alone and in company."""
    item.config.stash[_GUARD].expect(item.config.stash[_SESSION].needs(item))
    seed = item.config.option.seed or 0
    random.seed(seed)
    # A test that needs torch has imported it; the suite's own tests need not wait for it.
    if torch := sys.modules.get("torch"):
        # torch.manual_seed notes a stack for each kind of accelerator, which takes longer than most tests.
        torch.default_generator.manual_seed(seed)


@pytest.fixture(scope="session")
def impl(pytestconfig: pytest.Config) -> Implementation:
    """The implementation under test."""
    return pytestconfig.stash[_IMPLEMENTATION]


@pytest.fixture(scope="session")
def impl_name(pytestconfig: pytest.Config) -> str:
    """The value of ``--impl``: the name by which a child process loads the implementation."""
    return str(pytestconfig.option.impl)


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """The seed of the run; 0 where none was given."""
    return pytestconfig.option.seed or 0


@pytest.fixture
def tree_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty directory for what the test writes; with ``--keep-trees DIR`` one in DIR, by the test's name."""
    kept = request.config.option.keep_trees
    return tmp_path if kept is None else emptied(kept / file_name(request.node.nodeid))


@pytest.fixture(scope="session")
def fresh_dir(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> FreshDirs:
    """A function that makes a new empty directory at each call; with ``--keep-trees DIR`` in DIR."""
    kept = pytestconfig.option.keep_trees
    return FreshDirs(tmp_path_factory.mktemp("trees") if kept is None else kept)


def _forks_workers(config: pytest.Config) -> bool:
    """Whether there will be workers that can begin as forks of the server of readers."""
    option = config.option
    if hasattr(config, "workerinput") or not getattr(option, "numprocesses", 0) or not sys.platform.startswith("linux"):
        return False
    # What another implementation does when it is imported may have to come before the readers are.
    return option.impl == "reference" and not (option.collectonly or option.markers or option.showfixtures)


def _on_ci(option: Any) -> bool:
    # The suite's own tests run small specifications of their own, of which nothing is recorded.
    return option.impl == "reference" and option.spec_dir is None and bool(os.environ.get("CI"))


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
