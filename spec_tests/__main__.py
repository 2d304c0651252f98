# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests``: the conformance run, and the commands around it.

The run is the same wherever it is started: it has its own pytest configuration, loads no plugins but its
own, and writes nothing but what it was asked for.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import pytest

from spec_tests import where
from spec_tests.harness.clauses import load_clauses
from spec_tests.harness.paths import area_tests, package_dir
from spec_tests.harness.selection import nearest

JOBS = 2
COMMANDS = {
    "across": ("spec_tests.exporters.across", "main"),
    "bench": ("spec_tests.bench.command", "main"),
    "case": ("spec_tests.exporters.directory", "main"),
    "demo": ("spec_tests.demo", "main"),
    "drift": ("spec_tests.golden.drift", "main"),
    "dump": ("spec_tests.golden.command", "dump"),
    "faults": ("spec_tests.faults.command", "main"),
    "goldens": ("spec_tests.golden.command", "goldens"),
    "mutation": ("spec_tests.mutation.command", "main"),
    "mutants": ("spec_tests.mutants.runner", "main"),
    "read": ("spec_tests.golden.reading", "main"),
    "regress": ("spec_tests.golden.command", "regress"),
    "releases": ("spec_tests.results", "releases"),
    "results": ("spec_tests.results", "main"),
    "subjects": ("spec_tests.exporters.subjects", "main"),
    "zoo": ("spec_tests.zoo.command", "main"),
}
# What belongs to the run if it is installed; everything else that is installed stays out.
_PLUGINS = {
    "xdist": "xdist.plugin",
    "_hypothesis_pytestplugin": "_hypothesis_pytestplugin",
    "pytest_timeout": "pytest_timeout",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; the conformance run where they name none."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] == "clauses":
        return list_clauses(arguments[1:])
    if arguments and arguments[0] in COMMANDS:
        module, function = COMMANDS[arguments[0]]
        return int(getattr(import_module(module), function)(arguments[1:]) or 0)
    if any(word.partition("=")[0] == "--exporter" for word in arguments):
        return int(import_module("spec_tests.exporters.command").main(arguments))
    if arguments and not arguments[0].startswith("-") and "::" not in arguments[0]:
        hint = nearest(arguments[0], ["clauses", *COMMANDS])
        print(f"python -m spec_tests {arguments[0]}: no such command; {hint}", file=sys.stderr)
        return int(pytest.ExitCode.USAGE_ERROR)
    return conformance(arguments)


def list_clauses(arguments: Sequence[str] = ()) -> int:
    """Print every clause on a line, with what of an implementation it needs; as data; or where some of them stand."""
    parser = argparse.ArgumentParser(prog="python -m spec_tests clauses", description="The clauses, a line each.")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="ID",
        help="print the lines of the specification, the tests, the mutants and the bundled code that name this clause",
    )
    parser.add_argument("--json", action="store_true", help="print every clause as data, with its tests and mutants")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="a --report-json of a run: --json then counts the cases executed"
    )
    options, clauses = parser.parse_args(arguments), load_clauses()
    if options.json:
        try:
            ran = json.loads(options.report.read_text(encoding="utf-8"))["clauses"] if options.report else {}
            executed = {clause_id: outcome["executed"] for clause_id, outcome in ran.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            parser.error(f"--report {options.report}: must be what --report-json has written: {error!r}")
        data = [where.as_data(clause, executed) for clause in clauses.values()]
        print(json.dumps(data, indent=2, ensure_ascii=False))
        return 0
    wanted = options.where
    if unknown := [clause_id for clause_id in wanted if clause_id not in clauses]:
        print(f"--where {unknown[0]}: no such clause; {nearest(unknown[0], clauses)}", file=sys.stderr)
        return int(pytest.ExitCode.USAGE_ERROR)
    for clause_id in wanted:
        print("\n".join(where.report(clauses[clause_id])))
    for clause in () if wanted else clauses.values():
        needs = f"  [needs {', '.join(clause.needs)}]" if clause.needs else ""
        print(f"{clause.id}  {clause.keyword:6}  {clause.level:9}  {clause.text}{needs}")
    return 0


def conformance(arguments: Sequence[str], among: Sequence[Path] = ()) -> int:
    """Run the tests of all areas, or those ``among`` these files, against one implementation; 0 if it is conformant."""
    parser = argparse.ArgumentParser(
        prog="python -m spec_tests",
        description=f"The conformance run. Other commands: clauses, {', '.join(COMMANDS)}.",
        epilog="Further options are pytest's and the plugin's: --impl, --area, --clause, --level, --seed, "
        "--keep-trees, --report-json, --check-results, -x, -v, --junitxml and so on.",
        allow_abbrev=False,
    )
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"worker processes, 0 for none (default {JOBS})")
    parser.add_argument("--strict", action="store_true", help="SHOULD counts as MUST")
    own, rest = parser.parse_known_args(arguments)
    package, files = package_dir(), [str(path) for path in among or area_tests()]
    asked = [word for word in rest if "::" in word and not word.startswith("-")]
    rest = [word for word in rest if word not in asked]
    if not files:
        print(f"no tests in {package.name}: the installation is incomplete", file=sys.stderr)
        return int(pytest.ExitCode.NO_TESTS_COLLECTED)
    print(f"spec_tests: {len(files)} files of tests are being read; the first results take half a minute", flush=True)
    files = [str(package / word) for word in asked] or files
    plugins = [plugin for module, plugin in _PLUGINS.items() if importlib.util.find_spec(module)]
    options = ["-c", str(package / "conformance.ini"), "-p", "no:cacheprovider", "-p", "spec_tests.plugin"]
    options += [word for plugin in plugins for word in ("-p", plugin)]
    options += ["-n", str(own.jobs), "--dist", "worksteal"] if own.jobs and "xdist.plugin" in plugins else []
    options += ["--strict-should"] if own.strict else []
    with tempfile.TemporaryDirectory(prefix="addons-spec-") as scratch:
        _isolate(scratch)
        # PEFT asks the hub for a base model's config at every save.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's end of the job prints what ran, as Ctrl-C does
        return int(pytest.main([*options, "--conformance", "--tb=short", *rest, *files]))


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _isolate(scratch: str) -> None:
    """Keep the caller's pytest settings out, and Hypothesis's files out of the caller's directory."""
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        os.environ.pop(name, None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = scratch


if __name__ == "__main__":
    sys.exit(main())
