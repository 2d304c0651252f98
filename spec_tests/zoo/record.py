# SPDX-License-Identifier: Apache-2.0
"""The recorded result of a whole walk, and what has become worse since.

One file for an implementation and a version of transformers: a line a family, a letter a case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from spec_tests.harness.paths import fixtures_dir
from spec_tests.zoo.refusals import REFUSALS, reason_of
from spec_tests.zoo.verdict import Verdict

LETTERS = {"equal": "E", "as the peer": "P", "refused": "R", "not applicable": "-", "wrong": "W"}


def path_of(impl: str) -> Path:
    """The file for the installed transformers."""
    return fixtures_dir() / "zoo" / f"{impl}-{version('transformers')}.json"


def write(verdicts: Sequence[Verdict], unbuilt: Mapping[str, str], impl: str) -> Path:
    """Record a walk; returns where."""
    path = path_of(impl)
    path.parent.mkdir(exist_ok=True)
    families: dict[str, str] = {}
    for one in verdicts:
        families[one.family] = families.get(one.family, "") + LETTERS[one.outcome]
    content = {
        "versions": {name: version(name) for name in ("peft", "torch", "transformers")},
        "cases": list(dict.fromkeys(one.case for one in verdicts)),
        "letters": {letter: outcome for outcome, letter in LETTERS.items()},
        "families": families,
        "not built": dict(sorted(unbuilt.items())),
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def compared(verdicts: Sequence[Verdict], unbuilt: Mapping[str, str], impl: str) -> list[str]:
    """What is worse than recorded: not equal any more, not built any more, refused more often."""
    able = [reason_of(one) for one in verdicts if one.outcome == "refused" and one.peer_can]
    worse = [
        f"refused, {name}: {able.count(name)} times where the peer can save, at most {one.most}"
        for name, one in REFUSALS.items()
        if able.count(name) > one.most
    ]
    path = path_of(impl)
    if not path.exists():
        return worse
    before = json.loads(path.read_text(encoding="utf-8"))
    worse += [f"{family}: not built any more: {unbuilt[family]}" for family in before["families"] if family in unbuilt]
    for one in verdicts:
        letters = before["families"].get(one.family, "")
        at = before["cases"].index(one.case) if one.case in before["cases"] else len(letters)
        if letters[at : at + 1] == "E" and one.outcome != "equal":
            worse.append(f"{one.family}, {one.case}: was equal, is {one.outcome}: {one.detail}")
    return worse
