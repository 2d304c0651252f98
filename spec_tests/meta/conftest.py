# SPDX-License-Identifier: Apache-2.0
"""A small specification, implementation and suite of tests, on which the plugin is tried."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from spec_tests.harness.paths import package_dir
from spec_tests.meta.forks import in_a_fork

SPEC = """\
# Sample (ALP)

- **ALP-001** (MUST, contract, since 1.0) The first thing holds.
  Why one.
- **ALP-002** (SHOULD, contract, since 1.0) The second thing holds.
  Why two.
- **ALP-003** (MUST, extension, since 1.0, needs pipelines) The third thing holds.
  Why three.
- **ALP-004** (MUST, hardening, since 1.1) The fourth thing holds.
  Why four.
- **ALP-005** (MUST, contract, since 1.0, applies pytest <1) The fifth thing holds.
  Why five.
"""

IMPLEMENTATION = """\
from spec_tests.harness.known_failures import KnownFailure
from spec_tests.implementations.base import Implementation

IMPLEMENTATION = Implementation(
    name="fake", version="1.2", origin="a test of the suite", peft_addon=object, consolidated_addon=None,
    model_state=object, peft_config=object, adapters={{}}, helpers={{}}, adapter_tensors=dict, save_adapter=None,
    capabilities=frozenset({capabilities!r}), known_failures=({known}),
)
"""

GOOD = {
    "one": "ALP-001",
    "two": "ALP-002",
    "three": "ALP-003",
    "four": "ALP-004",
    "five": "ALP-005",
}


class Sample:
    """A directory with a specification, an implementation and tests, and runs of pytest in it."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.directory = Path(pytester.path)
        (self.directory / "spec").mkdir()
        (self.directory / "spec" / "sample.md").write_text(SPEC, encoding="utf-8")
        self.implementation()

    def implementation(self, known: str = "", capabilities: tuple[str, ...] = ()) -> None:
        """Write the implementation; `known` is Python: KnownFailure(...) calls, each with a comma behind it."""
        text = IMPLEMENTATION.format(known=known, capabilities=list(capabilities))
        (self.directory / "fake.py").write_text(text, encoding="utf-8")

    def tests(self, **bodies: str) -> None:
        """Write one test a clause of GOOD, passing, but for those whose body is given."""
        lines = ["import os, pytest"]
        for name, clause in GOOD.items():
            lines += [
                f"@pytest.mark.clause({clause!r})",
                f"def test_{name}():",
                f"    {bodies.pop(name, 'assert True')}",
            ]
        lines += [line for body in bodies.values() for line in body.splitlines()]
        self.pytester.makepyfile(test_sample="\n".join(lines))

    def run(self, *arguments: str) -> pytest.RunResult:
        """Run pytest on the tests, in a fork; both streams of the result have all that it printed."""
        options = ["-p", "xdist.plugin", "-p", "spec_tests.plugin", "--spec-dir", "spec", "--impl", "fake.py"]
        options += ["--report-json", "report.json", *map(str, arguments)]
        output, began = self.directory / "output.txt", time.monotonic()
        code = in_a_fork(lambda: int(pytest.main(options)), output)
        lines = output.read_text(encoding="utf-8").splitlines()
        known = set(map(int, pytest.ExitCode))
        return pytest.RunResult(
            pytest.ExitCode(code) if code in known else code, lines, lines, time.monotonic() - began
        )

    @property
    def report(self) -> dict:
        """The JSON report of the last run."""
        return json.loads((self.directory / "report.json").read_text(encoding="utf-8"))

    @property
    def outcomes(self) -> dict[str, str]:
        """The outcome of each clause in the last run."""
        return {clause: entry["outcome"] for clause, entry in self.report["clauses"].items()}


@pytest.fixture
def sample(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """A `Sample`, whose runs see none of the settings of this one."""
    for name in list(os.environ):
        if name.startswith(("ADDONS_SPEC_", "HYPOTHESIS_", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_XDIST")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(package_dir().parent))
    return Sample(pytester)
