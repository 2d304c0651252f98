# SPDX-License-Identifier: Apache-2.0
"""``python -m spec_tests subjects``: released exporters, each in an environment of its own, judged and recorded."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import addons
from spec_tests.exporters import command
from spec_tests.harness.paths import fixtures_dir, package_dir

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Subject:
    """An exporter that others released.

    Attributes:
        binding: its file in ``spec_tests/subjects``.
        version: the release.
        requirements: what its environment is made of. Those that begin with ``!`` come without what they need, where
            that is a GPU's or not needed here.
        path: its PYTHONPATH.
        checks: further files of ``spec_tests/subjects``: each ends with 0 in its environment, given an empty directory.
    """

    binding: str
    version: str
    requirements: tuple[str, ...]
    path: str = ""
    checks: tuple[str, ...] = ()


SUBJECTS: Mapping[str, Subject] = {
    "peft": Subject("peft_save.py", "0.21.2", (TORCH, "transformers==5.23.0", "peft==0.21.2")),
    "reference": Subject(
        "reference.py",
        addons.__version__,
        (TORCH, "transformers==5.23.0", "peft==0.21.2"),
        path=str(package_dir().parent),
    ),
    "peft-0.18": Subject("peft_save.py", "0.18.1", (TORCH, "transformers==5.0.0", "peft==0.18.1")),
    "transformers": Subject("transformers_save.py", "5.23.0", (TORCH, "transformers==5.23.0", "accelerate==1.15.0")),
    "nemo-automodel": Subject(
        "nemo_checkpointer.py", "0.7.0", (TORCH, "transformers==5.23.0", "peft==0.21.2", "!nemo-automodel==0.7.0")
    ),
    "nemo-automodel-addons": Subject(
        "nemo_with_addons.py",
        "0.7.0",
        (
            *(TORCH, "transformers==5.23.0", "peft==0.21.2", "!nemo-automodel==0.7.0"),
            "sentence-transformers==6.2.0",
        ),
        path=str(package_dir().parent),
        checks=("nemo_encoders.py",),
    ),
    "torchtitan": Subject(
        "torchtitan_lora.py",
        "0.3.0",
        (
            *(TORCH, "transformers==5.23.0", "einops==0.8.2", "tyro==1.0.17", "datasets==4.7.0"),
            *("!torchtitan==0.3.0", "!spmd_types==0.2.3", "!torchdata==0.11.0", "!torch_checkpointing==0.1.1"),
            "triton==3.7.1",
        ),
        path=os.pathsep.join(str(package_dir().parent / name) for name in ("", "examples")),
    ),
    "torchtune": Subject("torchtune_save.py", "0.6.1", (TORCH, "torchtune==0.6.1", "torchao==0.10.0")),
    "verl": Subject(
        "verl_merge.py",
        "0.9.1",
        (
            TORCH,
            *("transformers==5.9.0", "peft==0.21.2", "accelerate==1.15.0", "tensordict==0.10.0", "ray==2.60.0"),
            *(
                "omegaconf==2.3.1",
                "hydra-core==1.3.8",
                "codetiming==1.4.0",
                "datasets==5.2.0",
                "pillow==13.0.0",
                "!verl==0.9.1",
            ),
        ),
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Judge the subjects, and record what was found; 1 when one could not be judged."""
    parser = argparse.ArgumentParser(prog="python -m spec_tests subjects", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default {', '.join(SUBJECTS)}")
    parser.add_argument("--target", type=Path, metavar="DIR", help="where the environments are made, or are")
    parser.add_argument("--record", type=Path, metavar="DIR", help="where to (by default this project's own)")
    parser.add_argument("--readme", action="store_true", help="print the README's table of what is recorded")
    options = parser.parse_args(arguments)
    directory = options.record or fixtures_dir() / "exporters"
    if options.readme:
        print(table(directory))
        return 0
    if options.target is None:
        parser.error("--target is needed, where the environments are made")
    names = options.names or list(SUBJECTS)
    if unknown := [name for name in names if name not in SUBJECTS]:
        parser.error(f"no subject {unknown[0]!r}; there are {', '.join(SUBJECTS)}")
    judged = [_judged(name, options.target.resolve(), directory) for name in names]
    return int(not all(judged))


def table(directory: Path) -> str:
    """What is recorded, as Markdown: how many cases ended how."""
    kinds = ("right", "refused", "wrong", "failed", "cannot")
    lines = ["| exporter | " + " | ".join(kinds) + " | against |", "| --- |" + " --- |" * (len(kinds) + 1)]
    for path in sorted(directory.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        counts = Counter(one["said"] for one in content["cases"].values())
        against = sorted(clause for clause, outcome in content["clauses"].items() if outcome == "FAIL")
        cells = [f"{content['name']} {content['version']}", *(str(counts[kind]) for kind in kinds), ", ".join(against)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def condensed(report: Mapping[str, Any]) -> dict[str, Any]:
    """What of a report is recorded: nothing that differs from run to run."""
    cases = {
        name: {"said": one["said"], "findings": [finding["clauses"] for finding in one["findings"]]}
        for name, one in report["cases"].items()
    }
    return {
        "name": report["implementation"]["name"],
        "version": report["implementation"]["version"],
        "readers": {name: report["packages"][name] for name in ("peft", "transformers")},
        "clauses": {clause: found["outcome"] for clause, found in report["clauses"].items()},
        "cases": cases,
    }


def _judged(name: str, target: Path, directory: Path) -> bool:
    subject, place = SUBJECTS[name], target / name
    python = _environment(place, subject)
    report = target / f"{name}.json"
    os.environ["PYTHONPATH"] = subject.path
    words = ["--exporter", f"{python} {package_dir() / 'subjects' / subject.binding}"]
    command.main(
        [*words, "--name", name.removesuffix("-0.18"), "--version", subject.version, "--report-json", str(report)]
    )
    content = condensed(json.loads(report.read_text(encoding="utf-8")))
    if any(one["said"] == "not judged" for one in content["cases"].values()):
        print(f"{name}: not recorded, because its environment or binding failed")
        return False
    directory.mkdir(exist_ok=True)
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (directory / f"{name}.json").write_text(text, encoding="utf-8")
    checked = [_passes(python, check) for check in subject.checks]
    return all(checked)


def _passes(python: Path, check: str) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        ended = subprocess.run([str(python), str(package_dir() / "subjects" / check), directory], check=False)
    print(f"{check}: {'passed' if ended.returncode == 0 else f'ended with {ended.returncode}'}")
    return ended.returncode == 0


def _environment(place: Path, subject: Subject) -> Path:
    """The interpreter of a subject's environment, which is made where it is not there, unfinished or of other pins."""
    python = place / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    made, wanted = place / "requirements.txt", "\n".join(subject.requirements)
    if not made.is_file() or made.read_text(encoding="utf-8") != wanted:
        if place.exists() and any(place.iterdir()) and not (place / "pyvenv.cfg").exists():
            raise SystemExit(f"{place} must be an environment, or not there, got something else: name another --target")
        venv.create(place, clear=True, with_pip=bool(subject.requirements))
        install = [str(python), "-m", "pip", "install", "--quiet"]
        alone = [one.removeprefix("!") for one in subject.requirements if one.startswith("!")]
        others = [one for one in subject.requirements if not one.startswith("!")]
        for words in (others, ["--no-deps", *alone] if alone else []):
            if words:
                subprocess.run([*install, *words], check=True)
        made.write_text(wanted, encoding="utf-8")
    return python
