# SPDX-License-Identifier: Apache-2.0
"""Run an exporter on one case, and say how it went."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from spec_tests.exporters.cases import ExportCase
from spec_tests.exporters.directory import write_case
from spec_tests.exporters.judge import CLOSE, Finding, judge, spoken_of
from spec_tests.harness.environment import ReaderError
from spec_tests.harness.outcomes import Case, Status

CANNOT = 3
NOT_PUT_IN = "NotPutIn"
PATIENCE = 600.0
"""Seconds for one case."""


@dataclass(frozen=True)
class Result:
    """How one case went.

    Attributes:
        case: the case.
        said: ``right``, ``refused``, ``wrong``, ``failed``, ``cannot`` or ``not judged``.
        findings: what is wrong, with clauses.
        text: the last line that the exporter printed, or why it is not judged.
    """

    case: ExportCase
    said: str
    findings: list[Finding] = field(default_factory=list)
    text: str = ""

    def cases(self) -> list[Case]:
        """A case of the report for each clause that this is about."""
        against = {clause for finding in self.findings for clause in finding.clauses}
        status = {"cannot": Status.UNCLAIMED, "not judged": Status.SKIPPED}.get(self.said)
        return [
            Case(self.case.id, (clause,), status or (Status.FAILED if clause in against else Status.PASSED))
            for clause in sorted({*spoken_of(self.case), *against})
        ]


@dataclass(frozen=True)
class Prepared:
    """A case that is written, and what a reader must make of it.

    Attributes:
        case: the case.
        place: the directory with ``case`` and ``result``.
        wanted: the trained model's logits.
        base: the base model's.
    """

    case: ExportCase
    place: Path
    wanted: torch.Tensor
    base: torch.Tensor


def prepare(case: ExportCase, directory: Path) -> Prepared:
    """Write a case into a directory of its own below ``directory``, beside an empty result."""
    place = directory / case.id
    wanted, base = write_case(case, place / "case")
    (place / "result").mkdir()
    return Prepared(case, place, wanted, base)


def run_exporter(prepared: Prepared, command: Sequence[str]) -> tuple[int | None, str]:
    """Run the exporter on a case, one process a rank; its exit code, None past the time, and its last word.

    Each rank has the variables that torchrun gives it. When one rank ends with an error the others are ended.
    """
    words = [*command, str(prepared.place / "case"), str(prepared.place / "result")]
    ranks = range(prepared.case.ranks)
    outputs = [prepared.place / f"output-{rank}.txt" for rank in ranks]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank, variables in zip(ranks, _variables(len(ranks)), strict=True):
            with outputs[rank].open("wb") as output:
                started.append(subprocess.Popen(words, env=variables, stdout=output, stderr=subprocess.STDOUT))
        code = _ended(started)
    except OSError as error:
        raise SystemExit(f"--exporter {shlex.join(command)}: cannot be started: {error}") from error
    finally:
        for process in started:
            process.kill()
            process.wait()
    if code is None:
        return None, f"no end within {PATIENCE:.0f} s"
    failed = next((rank for rank in ranks if started[rank].returncode == code), 0)
    return code, _reason(outputs[failed].read_text(encoding="utf-8", errors="replace"))


def judged(prepared: Prepared, code: int | None, text: str) -> Result:
    """What the exporter's end and its files come to."""
    case, export = prepared.case, prepared.place / "result" / "export"
    # A trainer whose model has no place for the values cannot train this.
    if code == CANNOT or (code and NOT_PUT_IN in text):
        return Result(case, "cannot", text=text)
    if code and re.match(r"(\[rank\d+\]: )?(ModuleNotFound|Import|Syntax)Error\b", text):
        return Result(case, "not judged", text=f"the exporter's environment or binding: {text}")
    if code != 0:
        return _refused(case, export, code, text)
    if wrong := _another_model(prepared.place / "result" / "observed.safetensors", prepared.wanted, prepared.base):
        return Result(case, "not judged", text=wrong)
    try:
        findings = judge(case, prepared.place / "case" / "base", export, prepared.wanted)
    except ReaderError as error:
        return Result(case, "not judged", text=str(error))
    return Result(case, "wrong" if findings else "right", findings)


def _variables(ranks: int) -> list[dict[str, str]]:
    # Some exporters go through sets: the hash seed is one, so that a run can be repeated.
    fixed = {"HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    common = {**os.environ, **fixed, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if ranks == 1:
        return [common]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**common, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _ended(started: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The first exit code that is not 0; 0 when all have ended well; None when the time is over."""
    over = time.monotonic() + PATIENCE
    while time.monotonic() < over:
        codes = [process.poll() for process in started]
        if failed := [code for code in codes if code]:
            return failed[0]
        if None not in codes:
            return 0
        time.sleep(0.05)
    return None


def _refused(case: ExportCase, export: Path, code: int | None, text: str) -> Result:
    left = sorted(path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file())
    if left:
        finding = Finding(("ERR-001",), f"a save that fails must leave nothing, got {', '.join(left[:5])}; {text}")
        return Result(case, "failed", [finding], text)
    if case.control or code is None:
        finding = Finding(spoken_of(case), f"it must be saved, got exit code {code}: {text}")
        return Result(case, "failed", [finding], text)
    return Result(case, "refused", text=text)


def _another_model(observed: Path, wanted: torch.Tensor, base: torch.Tensor) -> str:
    """Why the exporter's own model is not the case's; nothing, if it is or nobody says."""
    if not observed.is_file():
        return ""
    off = (load_file(observed)["logits"].float() - wanted).abs().max().item()
    effect = (wanted - base).abs().max().item()
    limit = max(CLOSE["F32"], 0.05 * effect)
    return f"the binding's own model is {off:.3g} off the case's: put_in it as the case says" if off > limit else ""


def _reason(output: str) -> str:
    """The last error of the output, or its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|NotPutIn)\b", line)]
    return (errors or lines or ["no word"])[-1][:300]
