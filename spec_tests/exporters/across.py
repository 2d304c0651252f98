# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests across PYTHON...``: adapters that the reference writes in each environment, read in each.

Every interpreter has the suite's own packages (`.[suite]`), and a transformers and a PEFT of its own. The base model is
written by the reader's transformers. The table is Markdown; ``--update`` writes ``fixtures/exporters/VERSIONS.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spec_tests.exporters.cases import CATALOGUE
from spec_tests.harness.paths import fixtures_dir, package_dir

CASES = [case.id for case in CATALOGUE if case.kind == "adapter" and case.ranks == 1]
_ASK = "import peft, transformers; print(f'transformers {transformers.__version__}, PEFT {peft.__version__}')"
HEAD = """# Adapters across versions of transformers and PEFT

`python -m spec_tests across PYTHON...` made this. The reference wrote {count} adapters of PEFT's LoRA in the
environment of each row; PEFT and transformers of each column loaded them and computed. *Right*: the trained model's
answers, without a warning. *Wrong* is told below the table. *Refused*: nothing was written. *Cannot*: PEFT of the row
cannot make or load the model.
"""


def main(arguments: Sequence[str]) -> int:
    """Print the table; 1 when an adapter was read wrong."""
    parser = argparse.ArgumentParser(prog="python -m spec_tests across", description=__doc__, allow_abbrev=False)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON", help="the interpreter of an environment")
    parser.add_argument("--update", action="store_true", help="write the table")
    options = parser.parse_args(arguments)
    names = {python: _run([python, "-c", _ASK]).strip().splitlines()[-1] for python in options.pythons}
    found = {}
    for writer in options.pythons:
        for reader in options.pythons:
            found[names[writer], names[reader]] = _cases(writer, reader)
            print(f"written by {names[writer]}, read by {names[reader]}: {_cell(found[names[writer], names[reader]])}")
    text = table(list(names.values()), found)
    if options.update:
        (fixtures_dir() / "exporters" / "VERSIONS.md").write_text(text, encoding="utf-8")
    print(text)
    return int(any(one["said"] == "wrong" for cases in found.values() for one in cases.values()))


def table(names: Sequence[str], found: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """The Markdown of what was found, by writer and reader."""
    lines = [HEAD.format(count=len(CASES)), "| written by | " + " | ".join(names) + " |"]
    lines.append("| --- |" + " --- |" * len(names))
    wrong = []
    for writer in names:
        lines.append(f"| {writer} | " + " | ".join(_cell(found[writer, reader]) for reader in names) + " |")
        for reader in names:
            for case, one in found[writer, reader].items():
                wrong += [f"- {case}, {writer} to {reader}: {text['text']}" for text in one["findings"]]
    return "\n".join([*lines, *([""] if wrong else []), *wrong]) + "\n"


def _cases(writer: str, reader: str) -> dict[str, Any]:
    for python in (writer, reader):
        if shutil.which(python) is None:
            raise SystemExit(f"{python}: it must be a Python with the suite's packages (.[suite]), got no such program")
    with tempfile.TemporaryDirectory(prefix="across-") as scratch:
        report = Path(scratch, "report.json")
        words = [reader, "-m", "spec_tests", "--exporter", f"{writer} {package_dir() / 'subjects' / 'reference.py'}"]
        words += [word for case in CASES for word in ("--case", case)]
        said = _run([*words, "--report-json", str(report)])
        if not report.is_file():
            raise SystemExit(f"{reader}: it must have the suite's packages (.[suite]), got no report: {said[-500:]}")
        content: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["cases"]
        return content


def _run(words: Sequence[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package_dir().parent)}
    # 1 is the verdict of a run.
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode()


def _cell(cases: Mapping[str, Any]) -> str:
    said = [one["said"] for one in cases.values()]
    return ", ".join(f"{said.count(kind)} {kind}" for kind in sorted(set(said)))
