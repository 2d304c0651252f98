# SPDX-License-Identifier: Apache-2.0
"""Runs of the conformance tests in processes forked from this one, which has imported everything once.

The rules for forking are those of `spec_tests.harness.ranks`: the child's first torch call is
``set_num_threads(1)``, the parent holds no process group, and the child leaves by ``os._exit``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec_tests.consumers import clean_process, server
from spec_tests.harness import profiles
from spec_tests.harness.large_pages import use_large_pages
from spec_tests.harness.paths import area_tests

PROFILE = "mutants"
SOON = "4"
"""Seconds within which areas/test_ranks.py wants an answer: a mutant that hangs costs a multiple of it."""
_PACKAGES = (
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
    "transformers.models.auto.modeling_auto",
    "peft",
    "torch._dynamo",
)


@dataclass(frozen=True)
class Job:
    """One conformance run: its name, the arguments of ``python -m spec_tests``, and the files of tests, () for all."""

    name: str
    arguments: tuple[str, ...]
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Done:
    """What came of a run: the JSON report, None when there is none; its output; the seconds it took."""

    job: Job
    report: dict[str, Any] | None
    output: str
    seconds: float
    problem: str


def warm() -> None:
    """Import what the tests use, under the profile that they are to draw by."""
    # A property keeps the profile under which it was imported.
    os.environ[profiles.ENVIRONMENT] = PROFILE
    os.environ.setdefault("ADDONS_SPEC_SOON", SOON)
    profiles.activate(conformance=True, seed=None)
    for name in _PACKAGES:
        importlib.import_module(name)
    for path in area_tests():
        importlib.import_module(f"spec_tests.areas.{path.stem}")
    importlib.import_module("spec_tests.harness.warm").warm()
    use_large_pages()
    if not clean_process.server_in_use():
        clean_process.use(*server.started())


def run(jobs: Sequence[Job], workers: int, timeout: float) -> Iterator[Done]:
    """Run the jobs, ``workers`` at a time; yields each as it ends. On leaving, no process is left."""
    waiting, running = list(jobs), {}
    scratch = Path(tempfile.mkdtemp(prefix="addons-mutants-"))
    # Tests of permissions look at it as another user.
    scratch.chmod(0o755)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                child = _Child(job, scratch / job.name, timeout)
                running[child.pid] = child
            for child in list(running.values()):
                if (done := child.poll()) is not None:
                    del running[child.pid]
                    yield done
            time.sleep(0.02)
    finally:
        for child in running.values():
            child.stop()
        shutil.rmtree(scratch, ignore_errors=True)


class _Child:
    """A forked process that makes one run."""

    def __init__(self, job: Job, directory: Path, timeout: float) -> None:
        self.job, self.directory = job, directory
        directory.mkdir()
        self._started = time.monotonic()
        self._deadline = self._started + timeout
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _conformance(job, directory)
        # Here and in the child: whoever comes first, the group is there before anybody ends it.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(self.pid, self.pid)

    def poll(self) -> Done | None:
        """The result, once there is one."""
        pid, _status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            if time.monotonic() < self._deadline:
                return None
            self.stop()
            return self._done("not finished in time")
        self._end_group()
        return self._done("")

    def stop(self) -> None:
        """End the child and all that it has started."""
        self._end_group()
        os.waitpid(self.pid, 0)

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _done(self, problem: str) -> Done:
        report, output = None, (self.directory / "output").read_text(encoding="utf-8", errors="replace")
        try:
            report = json.loads((self.directory / "report.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            problem = problem or "the run ended without a report"
        seconds = time.monotonic() - self._started
        shutil.rmtree(self.directory, ignore_errors=True)
        return Done(self.job, None if problem else report, output, seconds, problem)


def _conformance(job: Job, directory: Path) -> None:
    """The child's whole life."""
    code = 1
    try:
        import torch

        torch.set_num_threads(1)
        os.setpgid(0, 0)
        output = os.open(directory / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        # What the run leaves behind goes with its directory: a process that leaves hard removes nothing.
        os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
        from spec_tests.__main__ import conformance

        report = ["--report-json", str(directory / "report.json")]
        code = conformance(["--jobs", "0", "-q", *job.arguments, *report], job.files)
    except BaseException:  # noqa: BLE001 - the process ends here, and says why
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
